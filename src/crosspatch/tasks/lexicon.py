"""The words that the generators draw from: names, places, nouns, templates, and capitals with their countries."""


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _split(
    """
    Adam Alan Albert Alex Alice Amanda Amy Andrea Andrew Angela Anna Anne Anthony Arthur Barbara Ben Beth Bill Bob Brian
    Bruce Carl Carol Caroline Charles Charlie Chris Claire Clara Daniel David Diana Donald Dorothy Douglas Edward
    Elizabeth Ellen Emily Emma Eric Ethan Eva Fiona Frances Francis Frank Fred Gary George Grace Graham Greg Hannah
    Harold Harry Helen Henry Ian Irene Jack Jacob James Jane Jason Jennifer Jessica Jim Joan John Jonathan Joseph Julia
    Julie Karen Kate Katherine Keith Kelly Kenneth Kevin Larry Laura Lewis Linda Lisa Louis Louise Lucas Lucy Luke
    Marcus Margaret Maria Marie Mark Martha Martin Mary Matthew Melissa Michael Michelle Mike Nancy Nathan Nicholas
    Nicole Nigel Nora Oliver Olivia Oscar Pamela Patricia Paul Peter Philip Rachel Ralph Rebecca Richard Robert Roger
    Ronald Rose Russell Ruth Ryan Samuel Sandra Sara Sarah Scott Simon Sophie Stephen Steve Stuart Susan Thomas Tim Tom
    Tony Vera Victor Victoria Vincent Walter Wendy William
    """
)

PLACES = _split(
    "store garden restaurant school hospital office station library museum market beach park church hotel "
    "farm theater bakery cafe harbor gym"
)

OBJECTS = _split(
    "drink ring book letter key ball basket necklace gift ticket lamp phone pencil camera map coat "
    "bottle card kite guitar"
)

IOI_TEMPLATES = (
    "When {first} and {second} went to the {place}, {giver} gave a {object} to",
    "After {first} and {second} arrived at the {place}, {giver} handed a {object} to",
    "While {first} and {second} were waiting at the {place}, {giver} offered a {object} to",
    "Yesterday {first} and {second} met at the {place}, and {giver} sold a {object} to",
    "Because {first} and {second} got lost near the {place}, {giver} lent a {object} to",
    "Last summer {first} and {second} worked at the {place}. One day {giver} brought a {object} to",
    "Once {first} and {second} had cleaned the {place}, {giver} passed a {object} to",
    "At the {place}, {first} and {second} sat down to talk. Then {giver} showed a {object} to",
    "On the way to the {place}, {first} and {second} stopped for a moment, and {giver} handed a {object} to",
    "After a long day at the {place}, {first} and {second} went home. On the way {giver} gave a {object} to",
    "Friends since childhood, {first} and {second} visited the {place}. There {giver} bought a {object} for",
)

CAPITAL_TEMPLATES = (
    "{city}, the capital of",
    "{city} is the capital of",
    "The city of {city} is the capital of",
    "Everyone who lives in {city} knows that it is the capital of",
)

# city, country; none where the name of one holds the other (Mexico City) or where the country takes "the"
CAPITALS = (
    ("Kabul", "Afghanistan"), ("Tirana", "Albania"), ("Algiers", "Algeria"), ("Luanda", "Angola"),
    ("Buenos Aires", "Argentina"), ("Yerevan", "Armenia"), ("Canberra", "Australia"), ("Vienna", "Austria"),
    ("Baku", "Azerbaijan"), ("Manama", "Bahrain"), ("Dhaka", "Bangladesh"), ("Minsk", "Belarus"),
    ("Brussels", "Belgium"), ("Thimphu", "Bhutan"), ("Gaborone", "Botswana"), ("Sofia", "Bulgaria"),
    ("Phnom Penh", "Cambodia"), ("Ottawa", "Canada"), ("Santiago", "Chile"), ("Beijing", "China"),
    ("Bogotá", "Colombia"), ("Zagreb", "Croatia"), ("Havana", "Cuba"), ("Nicosia", "Cyprus"),
    ("Copenhagen", "Denmark"), ("Quito", "Ecuador"), ("Cairo", "Egypt"), ("Asmara", "Eritrea"),
    ("Tallinn", "Estonia"), ("Addis Ababa", "Ethiopia"), ("Helsinki", "Finland"), ("Paris", "France"),
    ("Tbilisi", "Georgia"), ("Berlin", "Germany"), ("Accra", "Ghana"), ("Athens", "Greece"),
    ("Port-au-Prince", "Haiti"), ("Tegucigalpa", "Honduras"), ("Budapest", "Hungary"), ("Reykjavik", "Iceland"),
    ("New Delhi", "India"), ("Jakarta", "Indonesia"), ("Tehran", "Iran"), ("Baghdad", "Iraq"),
    ("Dublin", "Ireland"), ("Rome", "Italy"), ("Kingston", "Jamaica"), ("Tokyo", "Japan"),
    ("Amman", "Jordan"), ("Astana", "Kazakhstan"), ("Nairobi", "Kenya"), ("Bishkek", "Kyrgyzstan"),
    ("Vientiane", "Laos"), ("Riga", "Latvia"), ("Beirut", "Lebanon"), ("Monrovia", "Liberia"),
    ("Tripoli", "Libya"), ("Vilnius", "Lithuania"), ("Antananarivo", "Madagascar"), ("Lilongwe", "Malawi"),
    ("Kuala Lumpur", "Malaysia"), ("Bamako", "Mali"), ("Valletta", "Malta"), ("Chisinau", "Moldova"),
    ("Ulaanbaatar", "Mongolia"), ("Podgorica", "Montenegro"), ("Rabat", "Morocco"), ("Maputo", "Mozambique"),
    ("Windhoek", "Namibia"), ("Kathmandu", "Nepal"), ("Managua", "Nicaragua"), ("Abuja", "Nigeria"),
    ("Oslo", "Norway"), ("Muscat", "Oman"), ("Islamabad", "Pakistan"), ("Asunción", "Paraguay"),
    ("Lima", "Peru"), ("Warsaw", "Poland"), ("Lisbon", "Portugal"), ("Doha", "Qatar"),
    ("Bucharest", "Romania"), ("Moscow", "Russia"), ("Kigali", "Rwanda"), ("Dakar", "Senegal"),
    ("Belgrade", "Serbia"), ("Bratislava", "Slovakia"), ("Ljubljana", "Slovenia"), ("Mogadishu", "Somalia"),
    ("Madrid", "Spain"), ("Khartoum", "Sudan"), ("Stockholm", "Sweden"), ("Damascus", "Syria"),
    ("Taipei", "Taiwan"), ("Dushanbe", "Tajikistan"), ("Bangkok", "Thailand"),
    ("Ankara", "Turkey"), ("Kampala", "Uganda"), ("Kyiv", "Ukraine"), ("Montevideo", "Uruguay"),
    ("Tashkent", "Uzbekistan"), ("Caracas", "Venezuela"), ("Hanoi", "Vietnam"), ("Sanaa", "Yemen"),
    ("Lusaka", "Zambia"), ("Harare", "Zimbabwe"),
)  # fmt: skip

# what lasts from one year to another
EVENTS = _split(
    "war siege plague drought trial voyage dynasty dispute campaign revolt famine treaty project reign conflict "
    "journey truce alliance mission rebellion strike crusade expedition partnership boom empire"
)

# names that an argument of a function may have
ARGUMENTS = _split(
    "load size files port color shape label order group level point source image field table row page box ring card "
    "bank ship road land plant stock price bill team game match race song film scene story book letter north south "
    "east west morning night summer winter hand head foot face voice heart line sound light fire wind rain snow "
    "ground floor wall door roof glass gold iron wood"
)

# what a docstring may say about them
NOTIONS = _split(
    "oil crime water stone paper market garden river mountain music dinner doctor village city window metal horse "
    "bird fish forest island bridge castle kitchen evening engine battle peace wealth health unit dark piece"
)

# singular, plural
NOUNS = tuple(
    (noun, f"{noun}s")
    for noun in _split(
        "author doctor teacher student friend king artist lawyer farmer pilot boy girl parent worker player singer "
        "driver manager soldier guard customer neighbor actor judge writer officer dancer poet guest brother sister"
    )
)
CLAUSE_VERBS = (("likes", "like"), ("knows", "know"), ("sees", "see"), ("loves", "love"), ("hates", "hate"),
                ("follows", "follow"), ("remembers", "remember"))  # fmt: skip
PREPOSITIONS = _split("near behind")

# professions by the pronoun of the stereotype
WOMEN_JOBS = _split(
    "nurse secretary receptionist librarian teacher dancer maid nanny hairdresser cleaner babysitter "
    "stylist cashier florist midwife typist housekeeper therapist"
)
MEN_JOBS = _split(
    "engineer mechanic soldier carpenter plumber pilot farmer boss guard captain surgeon lawyer butcher "
    "miner sheriff janitor programmer driver chef president scientist"
)

# those of NAMES that are given to one gender
GIRL_NAMES = _split(
    "Alice Amanda Amy Angela Anna Anne Barbara Carol Caroline Clara Diana Elizabeth Emily Emma Eva Hannah Helen Jane "
    "Jennifer Jessica Julia Julie Karen Kate Laura Linda Lisa Louise Lucy Margaret Maria Marie Martha Mary Melissa "
    "Michelle Nancy Nicole Rachel Rebecca Rose Ruth Sandra Sarah Sophie Susan Victoria Wendy"
)
BOY_NAMES = _split(
    "Adam Alan Albert Andrew Anthony Arthur Ben Bill Bob Brian Bruce Carl Charles Daniel David Donald Edward Eric "
    "Frank Fred Gary George Greg Harry Henry Ian Jack Jacob James Jason Jim John Jonathan Joseph Kevin Larry Luke Mark "
    "Martin Matthew Michael Mike Nathan Oliver Paul Peter Philip Richard Robert Roger Simon Stephen Steve Thomas Tom "
    "Tony Victor Walter William"
)

COLOURS = _split("red blue green yellow black white brown pink orange purple gray silver gold")

# what fits into a box
THINGS = _split(
    "apple key coat book ring ball map cup knife watch phone bottle letter hat coin shirt clock lamp camera brush rope "
    "candle mirror stone cake bread shoe toy pen bell flag glass"
)
