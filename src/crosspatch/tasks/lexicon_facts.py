"""Well-known facts by relation: a wording with a slot {subject}, and subjects with what follows."""

Known = tuple[tuple[str, str], ...]


def _read(text: str) -> Known:
    """Read `answer: subject, subject; answer: …`, line breaks as spaces."""
    groups = (group.split(": ") for group in " ".join(text.split()).split("; "))
    return tuple((subject, answer) for answer, subjects in groups for subject in subjects.split(", "))


FACTS: dict[str, tuple[str, Known]] = {
    "landmark_country": (
        "{subject} is a famous sight in the country of",
        _read(
            """France: The Eiffel Tower, The Louvre, Notre Dame, Mont Blanc; Italy: The Colosseum, Mount Etna,
            The Trevi Fountain, Pompeii; India: The Taj Mahal, The Red Fort; Egypt: The Great Sphinx, Abu Simbel,
            The Great Pyramid; Greece: The Acropolis, Mount Olympus, The Parthenon; Russia: The Kremlin, Red Square,
            Lake Baikal; China: The Great Wall, The Forbidden City; Japan: Mount Fuji, Tokyo Tower;
            Cambodia: Angkor Wat; Jordan: Petra; Spain: The Alhambra, The Sagrada Familia;
            Germany: The Brandenburg Gate, The Black Forest;
            Australia: The Opera House, The Great Barrier Reef, Uluru; Canada: The CN Tower; Mexico: Chichen Itza;
            Peru: Machu Picchu; England: Stonehenge, Big Ben, Tower Bridge; Turkey: The Blue Mosque, Hagia Sophia;
            Tanzania: Mount Kilimanjaro, The Serengeti; Switzerland: The Matterhorn; Scotland: Loch Ness"""
        ),
    ),
    "city_country": (
        "{subject} is a large city in the country of",
        _read(
            """Spain: Barcelona, Valencia, Seville; Germany: Munich, Hamburg, Frankfurt; Italy: Milan, Naples, Turin;
            France: Lyon, Marseille, Toulouse; Japan: Osaka, Kyoto, Nagoya; India: Mumbai, Kolkata, Bangalore;
            China: Shanghai, Shenzhen; Canada: Toronto, Montreal, Vancouver; Australia: Sydney, Melbourne, Brisbane;
            Turkey: Istanbul; Pakistan: Karachi, Lahore; Nigeria: Lagos; England: Manchester, Liverpool, Leeds;
            Switzerland: Geneva, Zurich; Poland: Krakow; Portugal: Porto; Belgium: Antwerp; Morocco: Casablanca;
            Israel: Haifa; Mexico: Guadalajara; Colombia: Medellin; Sweden: Gothenburg; Austria: Salzburg;
            Kenya: Mombasa; Scotland: Glasgow"""
        ),
    ),
    "company_country": (
        "{subject} is a company from the country of",
        _read(
            """Japan: Toyota, Sony, Honda, Nintendo, Mazda, Canon; Germany: Siemens, Volkswagen, Adidas, Bosch,
            Lufthansa; Sweden: Volvo, Ericsson; France: Renault, Peugeot, Michelin, Airbus; Italy: Fiat,
            Ferrari, Prada, Barilla;
            Switzerland: Rolex, Swatch; Finland: Nokia; Denmark: Lego, Carlsberg; China: Huawei, Alibaba, Lenovo;
            India: Infosys, Tata; Russia: Gazprom, Aeroflot; Spain: Zara; Ireland: Ryanair; Australia: Qantas;
            Brazil: Petrobras"""
        ),
    ),
    "product_company": (
        "The {subject} is a product of the company",
        _read(
            """Apple: iPhone, iPad, MacBook; Microsoft: Xbox, Surface tablet; Sony: PlayStation, Walkman;
            Toyota: Corolla, Camry, Prius; Honda: Civic, Accord; Ford: Mustang, Fiesta; Google: Chromebook, Pixel phone;
            Amazon: Kindle; Nintendo: Game Boy, Wii; Intel: Pentium; Nissan: Leaf car, Altima; Tesla: Cybertruck;
            Porsche: Cayenne; Boeing: Dreamliner"""
        ),
    ),
    "person_sport": (
        "{subject} is famous in the sport of",
        _read(
            """basketball: Michael Jordan, LeBron James, Kobe Bryant, Larry Bird, Magic Johnson, Stephen Curry;
            tennis: Roger Federer, Serena Williams, Rafael Nadal, Andre Agassi, Novak Djokovic, Maria Sharapova;
            baseball: Babe Ruth, Derek Jeter, Mickey Mantle, Jackie Robinson; golf: Tiger Woods, Jack Nicklaus,
            Arnold Palmer, Phil Mickelson; hockey: Wayne Gretzky, Bobby Orr, Mario Lemieux; chess: Magnus Carlsen,
            Bobby Fischer, Garry Kasparov; cricket: Sachin Tendulkar, Brian Lara, Shane Warne; football: Tom Brady,
            Peyton Manning, Joe Montana; boxing: Mike Tyson, Muhammad Ali, Joe Frazier; swimming: Michael Phelps,
            Mark Spitz, Ian Thorpe; soccer: David Beckham, Diego Maradona"""
        ),
    ),
    "person_country": (
        "{subject} was born in the country of",
        _read(
            """Austria: Wolfgang Mozart, Sigmund Freud; Germany: Albert Einstein, Karl Marx, Angela Merkel;
            Spain: Pablo Picasso, Salvador Dali; India: Mahatma Gandhi, Indira Gandhi; Russia: Leo Tolstoy,
            Vladimir Putin; Italy: Galileo Galilei, Marco Polo, Giuseppe Verdi; France: Claude Monet, Victor Hugo,
            Louis Pasteur;
            England: Charles Darwin, Isaac Newton, John Lennon; Poland: Marie Curie, Frederic Chopin;
            Mexico: Frida Kahlo, Diego Rivera; Argentina: Lionel Messi, Diego Maradona; Portugal: Cristiano Ronaldo;
            Norway: Henrik Ibsen, Edvard Munch; Sweden: Alfred Nobel, Greta Thunberg; Ireland: James Joyce, Oscar Wilde;
            Jamaica: Bob Marley, Usain Bolt; Cuba: Fidel Castro; China: Mao Zedong, Jackie Chan; Canada: Celine Dion"""
        ),
    ),
    "person_work": (
        "{subject} was a very famous",
        _read(
            """painter: Pablo Picasso, Claude Monet, Vincent van Gogh, Paul Cezanne, Salvador Dali, Edvard Munch;
            composer: Johann Sebastian Bach, Johannes Brahms, Frederic Chopin, Antonio Vivaldi, Giuseppe Verdi;
            philosopher: Immanuel Kant, Friedrich Nietzsche, Aristotle, Plato, Socrates, David Hume;
            physicist: Albert Einstein, Niels Bohr, Werner Heisenberg, Enrico Fermi; poet: Robert Frost, Lord Byron,
            John Keats, William Wordsworth, Emily Dickinson; mathematician: Leonhard Euler, Carl Gauss, Euclid,
            Pythagoras; astronomer: Nicolaus Copernicus, Edwin Hubble, Johannes Kepler"""
        ),
    ),
    "country_language": (
        "In {subject}, most people speak",
        _read(
            """Portuguese: Brazil, Angola, Portugal; Spanish: Mexico, Argentina, Chile, Peru, Cuba, Spain, Ecuador;
            Arabic: Egypt, Morocco, Iraq, Syria, Kuwait, Jordan; German: Austria, Germany; English: Australia, Jamaica,
            Ireland, England; French: Quebec, France, Senegal; Italian: Italy; Russian: Russia, Moscow; Polish: Poland;
            Turkish: Turkey; Danish: Denmark; Swedish: Sweden; Thai: Thailand; Hungarian: Hungary; Finnish: Finland;
            Norwegian: Norway; Japanese: Japan; Greek: Greece, Athens; Hebrew: Israel; Persian: Iran;
            Vietnamese: Vietnam"""
        ),
    ),
    "country_currency": (
        "The money that people use in {subject} is called the",
        _read(
            """yen: Japan; rupee: India, Pakistan; yuan: China; peso: Mexico, Chile, Argentina, Colombia;
            euro: Germany, France, Italy, Spain, Portugal, Greece; ruble: Russia; dollar: Canada, Australia, Singapore;
            franc: Switzerland; pound: England, Egypt, Scotland; krona: Sweden; krone: Denmark, Norway; baht: Thailand;
            lira: Turkey; real: Brazil; dinar: Kuwait, Jordan, Iraq; rial: Iran, Oman; forint: Hungary"""
        ),
    ),
}
