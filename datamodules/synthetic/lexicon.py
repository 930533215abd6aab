"""The words that fill the slots of the dialogues.

Words of one slot differ clearly in sound, no two words of the lexicon sound alike, and none is so rare that a small
model would meet it less than about a hundred times in a corpus of some thousand replies. Most are short, so that a
reply is a few blocks of speech tokens.
"""

NAMES = (
    "Tom", "Alice", "Robert", "Emma", "Kevin", "Lucy", "George", "Laura", "Oscar", "Michael",
    "Julia", "Peter", "Naomi", "Hugo", "Olivia", "Edward", "Chloe", "David", "Ruby", "Jack",
)  # fmt: skip

# For a model that learns further names: each differs from every other word of the lexicon by at least three phonemes of
# eSpeak, and takes few enough pieces of the quickstart's tokenizer that the anchors of its time hold them.
NEW_NAMES = (
    "Agnes", "Ahmed", "Amelia", "Aramis", "Ariadne", "Augustus", "Beatrice", "Bellamy", "Benedict", "Benjamin",
    "Bernard", "Beverly", "Bridget", "Calliope", "Candice", "Carmen", "Casimir", "Catalina", "Cecilia", "Chester",
    "Clarissa", "Clement", "Conrad", "Cordelia", "Cynthia", "Daphne", "Desmond", "Dimitri", "Dolores", "Domingo",
    "Dominic", "Dorian", "Edwina", "Estella", "Everard", "Fatima", "Felix", "Ferdinand", "Fergus", "Florence",
    "Franklin", "Giselle", "Gloria", "Gustav", "Hamish", "Harold", "Henrietta", "Horatio", "Ingrid", "Jasper",
    "Jessica", "Juanita", "Judith", "Lambert", "Lavinia", "Letitia", "Lorenzo", "Ludwig", "Mallory", "Marcella",
    "Mariana", "Marietta", "Mario", "Mercedes", "Monica", "Mortimer", "Moses", "Muriel", "Nadia", "Octavia",
    "Octavio", "Olivier", "Pablo", "Paloma", "Pamela", "Pandora", "Patricia", "Petra", "Quincy", "Raphael",
    "Reinhold", "Rosalind", "Rosamund", "Salvador", "Samantha", "Samson", "Santiago", "Serena", "Sergio", "Sigmund",
    "Silvio", "Sonia", "Tabitha", "Tatiana", "Theodora", "Titus", "Tobias", "Tristan", "Valeria", "Xavier",
)  # fmt: skip

NAME_LISTS = {"old": NAMES, "new": NEW_NAMES}

ROOMS = ("kitchen", "bedroom", "garden", "office", "attic", "hallway", "cellar", "porch", "study", "garage")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

# Without "two", "four" and "eight", which sound like "to", "for" and "ate".
NUMBERS = ("three", "five", "six", "seven", "nine", "ten", "eleven", "twelve")
MINUTES = ("o'clock", "fifteen", "thirty")

TASKS = (
    "call the bank", "buy some flowers", "feed the cat", "wash the car", "paint the fence", "pack the bags",
)  # fmt: skip

FOODS = ("bread", "pasta", "soup", "chicken", "carrots", "coffee", "rice", "beans")

SONG_FIRST = ("silver", "golden", "lonely", "crazy", "purple", "midnight")
SONG_SECOND = ("river", "island", "thunder", "castle", "dragon", "cowboy")

DEVICES = ("lamp", "heater", "radio", "camera", "fan")

THINGS = ("passport", "umbrella", "wallet", "guitar", "hammer")

CAPITALS = (
    ("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Egypt", "Cairo"),
    ("Spain", "Madrid"), ("Russia", "Moscow"), ("Cuba", "Havana"), ("Germany", "Berlin"),
)  # fmt: skip

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("happy", "sad"), ("clean", "dirty"), ("loud", "quiet"), ("early", "late"),
)  # fmt: skip

EVENTS = ("concert", "party", "picnic", "wedding", "dinner", "market")

# Short words of letters whose names do not rhyme.
SPELLED = ("rose", "lime", "oil", "Omar", "Lisa", "hero", "arm", "home", "Amos", "Mia", "Leo", "hair")
# Codes to copy: few letters, those that the spelled words use least, so that each is heard as often as other words are.
CODE_LETTERS = ("E", "H", "L", "R", "S")
