"""What a run leaves for people: tables, figures, one self-contained HTML page, and mirrors of them."""
