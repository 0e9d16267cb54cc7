"""One question for every relation of LAMA's T-REx part; `[X]` stands for the subject, the answer is the object.

The relations are Wikidata properties (Petroni et al. 2019); LAMA itself has cloze templates ("[X] was born in [Y] ."),
which a model that was fine-tuned to answer is not asked in.
"""

SUBJECT = "[X]"

QUESTIONS = {
    "P17": "In which country is [X]?",
    "P19": "In which place was [X] born?",
    "P20": "In which place did [X] die?",
    "P27": "Of which country is [X] a citizen?",
    "P30": "On which continent is [X]?",
    "P31": "What kind of thing is [X]?",
    "P36": "What is the capital of [X]?",
    "P37": "What is the official language of [X]?",
    "P39": "Which position has [X] held?",
    "P47": "With which place does [X] share a border?",
    "P101": "In which field does [X] work?",
    "P103": "What is the native language of [X]?",
    "P106": "What is the profession of [X]?",
    "P108": "For whom does or did [X] work?",
    "P127": "Who owns [X]?",
    "P131": "In which administrative territory is [X]?",
    "P136": "Which genre is [X] known for?",
    "P138": "After whom or what is [X] named?",
    "P140": "With which religion is [X] affiliated?",
    "P159": "In which place does [X] have its headquarters?",
    "P176": "Which company makes [X]?",
    "P178": "Who developed [X]?",
    "P190": "Which place is the twin city of [X]?",
    "P264": "Which record label represents [X]?",
    "P276": "Where can [X] be found?",
    "P279": "Of what is [X] a subclass?",
    "P361": "Of what is [X] a part?",
    "P364": "What is the original language of [X]?",
    "P407": "In which language is [X] written?",
    "P413": "Which position does [X] play?",
    "P449": "On which network was [X] first shown?",
    "P463": "Of what is [X] a member?",
    "P495": "In which country was [X] created?",
    "P527": "What does [X] consist of?",
    "P530": "With which country does [X] have diplomatic relations?",
    "P740": "In which place was [X] founded?",
    "P937": "In which city did [X] work?",
    "P1001": "In which territory does [X] apply?",
    "P1303": "Which instrument does [X] play?",
    "P1376": "Of what is [X] the capital?",
    "P1412": "In which language does or did [X] communicate?",
}


def question(template: str, subject: str) -> str:
    """Ask about a subject."""
    return template.replace(SUBJECT, subject)
