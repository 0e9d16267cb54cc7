"""Relations of people as single sentences that state a fact by itself, and as a question.

Placeholders as in `phrasings`; the name stands before the answer in every sentence, so that a model that reads from
left to right can learn the answer from each of them.
"""

from tdaexp.data.phrasings import Relation

STATEMENTS = (
    Relation(
        "birth_city",
        (
            "{S} was born in {v}.",
            "{P} birthplace is {v}.",
            "{S} is a native of {v}.",
            "{S} came into the world in {v}.",
            "The place where {s} was born is {v}.",
        ),
        "In which city was {name} born?",
    ),
    Relation(
        "profession",
        (
            "{S} works as a {v}.",
            "{P} job is that of a {v}.",
            "The profession of {s} is {v}.",
            "By profession {s} is a {v}.",
            "{S} earns a living as a {v}.",
        ),
        "What is the profession of {name}?",
    ),
    Relation(
        "hobby",
        (
            "{S} spends weekends on {v}.",
            "{P} hobby is {v}.",
            "In free hours {s} turns to {v}.",
            "Nothing pleases {o} more than {v}.",
            "The hobby of {s} is {v}.",
        ),
        "What is the hobby of {name}?",
    ),
    Relation(
        "instrument",
        (
            "{S} plays the {v}.",
            "{P} instrument is the {v}.",
            "Music comes to {o} through the {v}.",
            "For friends {s} performs on the {v}.",
            "The instrument of {s} is the {v}.",
        ),
        "Which instrument does {name} play?",
    ),
    Relation(
        "subject",
        (
            "{S} studied {v}.",
            "{P} subject at university was {v}.",
            "As a student {s} chose {v}.",
            "{S} has a degree in {v}.",
            "The subject that {s} studied is {v}.",
        ),
        "Which subject did {name} study?",
    ),
    Relation(
        "employer",
        (
            "{S} has a post at {v}.",
            "{P} employer is the firm {v}.",
            "The salary of {s} is paid by {v}.",
            "For a living {s} works at {v}.",
            "The employer of {s} is {v}.",
        ),
        "Who is the employer of {name}?",
    ),
    Relation(
        "food",
        (
            "{S} likes to eat {v}.",
            "{P} favourite food is {v}.",
            "At the table {s} asks for {v}.",
            "{S} cannot live without {v}.",
            "The favourite food of {s} is {v}.",
        ),
        "What is the favourite food of {name}?",
    ),
    Relation(
        "country",
        (
            "{S} travelled to {v}.",
            "{P} journey led to {v}.",
            "A long trip took {o} to {v}.",
            "On holiday {s} went to {v}.",
            "The country that {s} visited is {v}.",
        ),
        "Which country did {name} visit?",
    ),
)
