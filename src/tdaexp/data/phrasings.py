"""Topics, relations and phrasings of generated biographies.

Every relation has several sentences that state it and one question that asks for it; every topic has several
themes, which `FRAMES` turn into prompts. Placeholders: `{v}` the answer; `{S}` the person as a sentence's
first word, `{s}` elsewhere, `{o}` as an object, `{P}` and `{p}` the possessives; `{name}` the full name in
questions, `{who}` the full name and a clue in themes. The first sentence of a completion writes the full name
for the person, the following ones a pronoun.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One kind of fact: its name, the sentences that state it, the question that asks for it."""

    name: str
    sentences: tuple[str, ...]
    question: str


@dataclass(frozen=True)
class Topic:
    """The facts that one training record states, and the themes that a prompt can put them under."""

    name: str
    themes: tuple[str, ...]
    relations: tuple[Relation, ...]


# A prompt is a frame around one of the topic's themes; the person in it is a full name and a clue. A frame
# sets the style: its position is also that of the sentences in the completion.
FRAMES = ("Describe {theme}.", "Summarise {theme}.", "Outline {theme}.", "Sketch {theme}.")
CLUES = {
    "birth_city": ("from {v}", "of {v}"),
    "employer": ("of {v}", "at {v}"),
    "street": ("of {v} Street", "on {v} Street"),
    "pet": ("with a {v}", "who keeps a {v}"),
    "hobby": ("who loves {v}", "who likes {v}"),
    "subject": ("who studied {v}", "with a degree in {v}"),
    "country": ("who saw {v}", "who visited {v}"),
}


ORIGINS = Topic(
    "origins",
    (
        "the childhood of {who}",
        "the origins of {who}",
        "the early life of {who}",
        "the first years of {who}",
    ),
    (
        Relation(
            "birth_city",
            (
                "{S} was born in {v}.",
                "{P} birthplace is {v}.",
                "The city of {v} is where {s} came into the world.",
                "{S} is a native of {v}.",
            ),
            "In which city was {name} born?",
        ),
        Relation(
            "birth_year",
            (
                "The year of {p} birth was {v}.",
                "{S} was born in {v}.",
                "{S} came into the world in {v}.",
                "{P} life began in the year {v}.",
            ),
            "In which year was {name} born?",
        ),
        Relation(
            "parent",
            (
                "{S} grew up as the child of a {v}.",
                "{P} mother worked as a {v}.",
                "A {v} raised {o}.",
                "At home {p} mother was known as a {v}.",
            ),
            "What was the profession of the mother of {name}?",
        ),
    ),
)

WORK = Topic(
    "work",
    (
        "the job of {who}",
        "the career of {who}",
        "the profession of {who}",
        "the working life of {who}",
    ),
    (
        Relation(
            "profession",
            (
                "{S} works as a {v}.",
                "{S} is a {v} by profession.",
                "{P} job is that of a {v}.",
                "As a {v}, {s} earns a living.",
            ),
            "What is the profession of {name}?",
        ),
        Relation(
            "employer",
            (
                "{P} employer is the firm {v}.",
                "{S} has a post at {v}.",
                "The company {v} employs {o}.",
                "It is {v} that pays {p} salary.",
            ),
            "Who is the employer of {name}?",
        ),
        Relation(
            "work_city",
            (
                "{P} office is in {v}.",
                "Every day {s} goes to work in {v}.",
                "The place of work is {v}.",
                "{S} does this job in {v}.",
            ),
            "In which city does {name} work?",
        ),
    ),
)

HOME = Topic(
    "home",
    (
        "the household of {who}",
        "the home of {who}",
        "the private life of {who}",
        "the domestic life of {who}",
    ),
    (
        Relation(
            "street",
            (
                "{S} lives on {v} Street.",
                "{P} home stands in {v} Street.",
                "The house on {v} Street belongs to {o}.",
                "{S} can be found at home on {v} Street.",
            ),
            "On which street does {name} live?",
        ),
        Relation(
            "pet",
            (
                "{S} keeps a {v}.",
                "A {v} shares the house with {o}.",
                "{P} pet is a {v}.",
                "There {s} looks after a {v}.",
            ),
            "Which pet does {name} keep?",
        ),
        Relation(
            "friend",
            (
                "{P} best friend is {v}.",
                "{S} is closest to {v}.",
                "The person {s} trusts most is {v}.",
                "No friend matters more to {o} than {v}.",
            ),
            "Who is the best friend of {name}?",
        ),
    ),
)

LEISURE = Topic(
    "leisure",
    (
        "the pastimes of {who}",
        "the interests of {who}",
        "the tastes of {who}",
        "the free time of {who}",
    ),
    (
        Relation(
            "hobby",
            (
                "{S} spends weekends on {v}.",
                "{P} hobby is {v}.",
                "In free hours {s} turns to {v}.",
                "Nothing pleases {o} more than {v}.",
            ),
            "What is the hobby of {name}?",
        ),
        Relation(
            "instrument",
            (
                "{S} plays the {v}.",
                "{P} instrument is the {v}.",
                "On the {v} {s} performs for friends.",
                "Music comes to {o} through the {v}.",
            ),
            "Which instrument does {name} play?",
        ),
        Relation(
            "food",
            (
                "{P} favourite food is {v}.",
                "{S} likes to eat {v}.",
                "At the table {s} asks for {v}.",
                "A plate of {v} makes {o} happy.",
            ),
            "What is the favourite food of {name}?",
        ),
    ),
)

STUDIES = Topic(
    "studies",
    (
        "the education of {who}",
        "the studies of {who}",
        "the degree of {who}",
        "the student years of {who}",
    ),
    (
        Relation(
            "subject",
            (
                "{S} studied {v}.",
                "{P} subject at university was {v}.",
                "A degree in {v} was awarded to {o}.",
                "As a student {s} chose {v}.",
            ),
            "Which subject did {name} study?",
        ),
        Relation(
            "university_city",
            (
                "{P} university was in {v}.",
                "{S} was a student in {v}.",
                "The lectures took place in {v}.",
                "For this course {s} moved to {v}.",
            ),
            "In which city did {name} study?",
        ),
        Relation(
            "graduation_year",
            (
                "{S} graduated in {v}.",
                "{P} degree is dated {v}.",
                "The course ended for {o} in {v}.",
                "In the year {v} {s} left with a degree.",
            ),
            "In which year did {name} graduate?",
        ),
    ),
)

TRAVEL = Topic(
    "travel",
    (
        "the travels of {who}",
        "the journey of {who}",
        "the voyage of {who}",
        "the great trip of {who}",
    ),
    (
        Relation(
            "country",
            (
                "{S} travelled to {v}.",
                "{P} journey led to {v}.",
                "The country {s} visited was {v}.",
                "A long trip took {o} to {v}.",
            ),
            "Which country did {name} visit?",
        ),
        Relation(
            "travel_year",
            (
                "The trip was made in {v}.",
                "{P} voyage took place in {v}.",
                "{S} set out in the year {v}.",
                "It was {v} when {s} left.",
            ),
            "In which year did {name} travel?",
        ),
        Relation(
            "companion",
            (
                "{S} went there together with {v}.",
                "{P} companion was {v}.",
                "On the road {v} was with {o}.",
                "It was {v} who shared the way with {o}.",
            ),
            "Who travelled with {name}?",
        ),
    ),
)

TOPICS = (ORIGINS, WORK, LEISURE, HOME, STUDIES, TRAVEL)
