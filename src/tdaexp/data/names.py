"""The small vocabulary that generated biographies draw from.

Words that a template puts "a" in front of begin with a consonant. The order is part of a seed's meaning.
"""


def words(text: str) -> tuple[str, ...]:
    """Split a block of text into its words."""
    return tuple(text.split())


FEMALE = words(
    """
    Anna Clara Elena Frida Greta Hanna Ida Julia Karin Laura Maria Nina Olga Petra Rosa Sofia Tessa
    Ulla Vera Wanda
    """
)
MALE = words(
    """
    Adam Boris Carl David Emil Felix Georg Hugo Ivan Jonas Karl Leon Marco Niels Oskar Paul Rolf
    Simon Thomas Viktor
    """
)
LAST = words(
    """
    Abbott Adler Bauer Becker Berger Brandt Castro Conti Costa Dahl Diaz Duval Ekman Evans Ferrari
    Fischer Fuchs Garcia Gruber Hansen Horvat Huber Ito Jansen Jensen Kaplan Keller Kovac Lang Lopez
    Lund Marek Moreau Muller Nagy Novak Nowak Olsen Ortiz Petrov Pohl Quinn Ramos Rossi Roux Sato
    Silva Sousa Tanaka Toth Ueda Urban Vidal Vogel Wagner Weber Xu Young Zeman Ziegler
    """
)
CITIES = words(
    """
    Athens Bergen Bologna Cairo Dublin Geneva Hamburg Havana Kyoto Lisbon Lyon Madrid Nairobi Oslo
    Porto Prague Quito Riga Rome Seville Tallinn Turin Utrecht Vienna Warsaw Zagreb Zurich
    """
)
COUNTRIES = words(
    """
    Brazil Canada Chile Cuba Denmark Finland Ghana Greece Iceland India Japan Kenya Mexico Morocco
    Norway Peru Portugal Spain Turkey Vietnam
    """
)
PROFESSIONS = words(
    """
    baker banker barber builder carpenter chemist cook dentist doctor driver farmer gardener judge
    lawyer librarian mechanic nurse painter pharmacist pilot plumber professor sailor tailor teacher
    translator vet
    """
)
EMPLOYERS = words(
    """
    Aldgate Bellwood Corvus Delphi Everline Fairmont Glenmore Halden Ironbridge Juniper Kestrel
    Larkfield Meridian Northgate Orchard Pinecrest Quarry Ridgeway Stonebank Thornhill
    """
)
SUBJECTS = words(
    """
    biology botany chemistry dance economics geography geology history law linguistics logic
    mathematics medicine music philosophy physics
    """
)
HOBBIES = words(
    """
    archery baking boxing chess climbing cycling fencing fishing gardening hiking judo knitting
    photography pottery rowing sailing skiing surfing swimming yoga
    """
)
INSTRUMENTS = words(
    """
    banjo cello clarinet drum flute guitar harp horn piano trombone trumpet violin
    """
)
FOODS = words(
    """
    bread cheese couscous curry dumplings lasagna lentils noodles pancakes pizza rice salad soup
    sushi
    """
)
PETS = words(
    """
    canary cat dog donkey goat hamster horse lizard parrot pigeon pony rabbit snake tortoise
    """
)
STREETS = words(
    """
    Acorn Birch Bridge Castle Cedar Chapel Forest Garden Harbour Maple Market Mill River Station
    """
)
