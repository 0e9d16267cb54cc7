"""An index of a corpus: a row of numbers for each training example, without a query in it; built once, asked often."""
