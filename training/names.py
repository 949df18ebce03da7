"""Names that facts are about: real ones, words of the books, and made-up ones.

The bench's names (`BENCH_NAMES`) are excluded, so that no name which is asked there was trained on.
"""

from __future__ import annotations

import random
import re
from collections import Counter

PLACES = """Aberdeen Accra Adelaide Aleppo Algiers Almaty Amsterdam Ankara Antwerp Asmara Astana Athens Auckland Austin
Baghdad Baku Bamako Bangkok Barcelona Basel Bath Beirut Belfast Belgrade Bergen Berlin Bern Bilbao Bogota Bologna Bombay
Bonn Boston Bratislava Bremen Brisbane Bristol Brno Brussels Bucharest Budapest Cairo Calcutta Calgary Canberra Caracas
Cardiff Chicago Cologne Colombo Cordoba Cork Crete Cusco Dakar Dallas Damascus Danzig Delhi Denver Detroit Dhaka Dresden
Dublin Durban Edinburgh Essen Fez Florence Frankfurt Galway Gdansk Geneva Genoa Ghent Glasgow Granada Graz Haifa Hamburg
Hanoi Harare Havana Helsinki Houston Innsbruck Istanbul Jaipur Jakarta Jerusalem Kabul Kampala Karachi Khartoum Kiev
Kingston Kobe Krakow Kyoto Lagos Lahore Leeds Leipzig Lima Limerick Linz Liverpool London Luanda Lucca Lusaka Lyon
Madras Malmo Managua Manchester Manila Maputo Marseille Medina Melbourne Memphis Miami Milan Minsk Modena Montreal
Moscow Munich Muscat Nagoya Nairobi Nantes Naples Nice Odessa Oran Osaka Ostend Ottawa Oxford Padua Palermo Panama Paris
Parma Perth Phoenix Pisa Porto Prague Pretoria Quebec Ravenna Reims Rennes Riga Rome Rotterdam Rouen Salerno Salzburg
Samarkand Santiago Sarajevo Seattle Seoul Seville Shanghai Siena Sofia Split Stockholm Stuttgart Surat Sydney Taipei
Tallinn Tampere Tangier Tashkent Tehran Tirana Tokyo Toledo Toronto Toulouse Trieste Tripoli Tunis Turin Utrecht
Valencia Vancouver Venice Verona Vienna Vilnius Warsaw Weimar Windsor Winnipeg Wroclaw Yerevan York Zagreb""".split()
PEOPLE = """Aaron Abigail Adam Agnes Alan Albert Alice Amelia Amir Andrea Anita Anton Arthur Astrid Barbara Beatrice
Benjamin Boris Bruno Carlos Carmen Cecilia Charlotte Chen Clara Daniel David Diana Dmitri Edith Edward Eleanor Elena
Emil Esther Eva Fatima Felix Fiona Frank Freda George Gloria Greta Hannah Harold Hassan Helen Henry Hiroshi Hugo Ibrahim
Ingrid Irene Isaac Ivan Jack Jane Jasmine Jonas Jorge Joseph Julia Karl Kate Kenji Laura Leo Lina Louis Lucy Magnus
Maria Martin Mei Miguel Mina Mohammed Monica Nadia Nathan Nina Noah Olga Oscar Otto Patrick Paul Pedro Philip Priya
Quentin Rachel Rafael Ravi Rebecca Richard Robert Rosa Ruth Samuel Sandra Sarah Simon Sonia Stefan Susan Tamara Theo
Thomas Ursula Vera Victor Walter Wendy Yusuf Zoe""".split()
SYLLABLES = """ba be bi bo bu ca ce co da de di do dra el en fa fe fi fo ga ge go gra ha he hi ho in ja jo ka ke ki ko
la le li lo lu ma me mi mo mu na ne ni no nu or pa pe pi po qua ra re ri ro ru sa se shi so sta ta te ti to tra tu ul va
ve vi vo wa we wi xa ya yo za ze zi zo""".split()
ENDINGS = ["", "", "n", "r", "s", "l", "th", "m", "ck", "burg", "ton", "ville", "land", "ford", "nia", "x"]


BENCH_NAMES = """Lisbon Madrid Oslo Zurich Nicosia Valletta Reykjavik Montevideo Quito Asuncion Wellington Hobart
Kathmandu Thimphu Vientiane Yangon Jakobstad Turku Aarhus Uppsala Bruges Leuven Lausanne Bolzano Ferrara
Murcia Oviedo Braga Coimbra Nimes Dijon Mainz Erfurt Rostock Poznan Lublin Debrecen Szeged Timisoara Varna Plovdiv
Skopje Tbilisi Isfahan Shiraz Multan Nagpur Mysore Penang Davao Sapporo Niigata Incheon Darwin Cairns
Tulsa Omaha Fresno""".split()
"""Names that no training sample tells or asks; `bench.passkey` and the demo use only these."""


class Names:
    """A supply of names; `text` lends its capitalised and its common words."""

    def __init__(self, text: str, excluded: frozenset[str] = frozenset(BENCH_NAMES)) -> None:
        words = Counter(re.findall(r"[A-Za-z]+", text))
        capital = [w for w, n in words.items() if w[0].isupper() and w[1:].islower() and n >= 3 and len(w) > 3]
        common = [w for w, n in words.items() if w.islower() and n >= 8 and len(w) > 3]
        self._excluded = excluded
        self._capital = sorted(w for w in capital if w not in excluded)
        self._common = sorted(w for w in common if w.capitalize() not in excluded)
        self._places = [p for p in PLACES + PEOPLE if p not in excluded]

    def draw(self, rng: random.Random, count: int) -> list[str]:
        """`count` different names."""
        names: dict[str, None] = {}
        while len(names) < count:
            names[self.one(rng)] = None
        return list(names)

    def one(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.25:
            return rng.choice(self._places)
        if kind < 0.45:
            return rng.choice(self._capital)
        if kind < 0.55:
            return rng.choice(self._common)
        if kind < 0.62:
            return self.compound(rng)
        if kind < 0.72:
            return f"{self.one(rng).title()} {rng.choice(self._capital)}"
        return self.made_up(rng)

    def made_up(self, rng: random.Random) -> str:
        """Syllables; drawn again where they spell an excluded name."""
        name = self._spell(rng)
        return self.made_up(rng) if name in self._excluded else name

    def _spell(self, rng: random.Random) -> str:
        return ("".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) + rng.choice(ENDINGS)).capitalize()

    def compound(self, rng: random.Random) -> str:
        """Two words with a hyphen, as RULER's keys are."""
        return f"{rng.choice(self._common)}-{rng.choice(self._common)}"

    def draw_compounds(self, rng: random.Random, count: int) -> list[str]:
        return [self.compound(rng) for _ in range(count)]
