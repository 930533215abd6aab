"""The words that fill the slots of the dialogues.

Words of one slot differ clearly in sound, no two words of the lexicon sound alike, and none is so rare that a small
model would meet it less than about a hundred times in a corpus of some thousand replies.
"""

NAMES = (
    "Tom", "Alice", "Robert", "Emma", "Kevin", "Sophia", "George", "Laura", "Oscar", "Michael",
    "Julia", "Peter", "Naomi", "Hugo", "Olivia", "Edward", "Chloe", "David", "Ruby", "William",
)  # fmt: skip

ROOMS = ("kitchen", "bedroom", "garden", "office", "attic", "hallway", "library", "balcony", "nursery", "basement")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

# Without "two", "four" and "eight", which sound like "to", "for" and "ate".
NUMBERS = ("three", "five", "six", "seven", "nine", "ten", "eleven", "twelve")
MINUTES = ("o'clock", "fifteen", "thirty")

TASKS = (
    "call the dentist", "buy some flowers", "feed the rabbit", "wash the car", "paint the fence", "pack the suitcase",
)  # fmt: skip

FOODS = ("bread", "pasta", "potatoes", "chicken", "carrots", "coffee", "rice", "mushrooms")

SONG_FIRST = ("silver", "golden", "electric", "crazy", "purple", "midnight")
SONG_SECOND = ("river", "island", "thunder", "butterfly", "dragon", "cowboy")

DEVICES = ("lamp", "heater", "radio", "camera", "television")

THINGS = ("passport", "umbrella", "wallet", "guitar", "bicycle")

CAPITALS = (
    ("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Egypt", "Cairo"),
    ("Spain", "Madrid"), ("Russia", "Moscow"), ("Cuba", "Havana"), ("Germany", "Berlin"),
)  # fmt: skip

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("happy", "sad"), ("clean", "dirty"), ("loud", "quiet"), ("early", "late"),
)  # fmt: skip

EVENTS = ("concert", "party", "picnic", "wedding", "dinner", "market")

# Letters whose names do not rhyme, and short words that are made of these letters only.
LETTERS = ("A", "E", "H", "I", "L", "M", "O", "R", "S")
SPELLED = ("rose", "lime", "horse", "Omar", "Lisa", "hero", "marsh", "home", "Amos", "smile", "Elias", "hair")
