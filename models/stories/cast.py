"""Who and what a story is about, and how they are mentioned: the name or a pronoun."""

import itertools
import zlib

import words
from grammar import article as a

SKIES = {
    "fine": ["sunny", "warm", "bright", "lovely", "quiet", "fine", "clear", "warm and sunny", "cool and bright"],
    "wind": ["windy", "cool and windy", "gray and windy", "wild and windy"],
    "rain": ["rainy", "gray", "wet", "cloudy", "dark and wet"],
    "snow": ["cold", "snowy", "cold and white", "frosty", "cold and clear"],
    "night": ["dark", "quiet", "still", "warm and dark", "clear"],
}
HELD_OUT = 30  # one in so many pairs of a main character's name and a place is kept for unseen stories


def held_out(name, place):
    return zlib.crc32(f"{name} in {place}".encode()) % HELD_OUT == 0


class Person:
    """intro is what the first mention says; None: the name."""

    def __init__(self, name, male, kind=None, hands="hands", home="house", tags=""):
        kind = kind or ("boy" if male else "girl")
        self.name, self.male, self.kind, self.hands, self.home = name, male, kind, hands, home
        self.he, self.him, self.his, self.himself = (
            ("he", "him", "his", "himself") if male else ("she", "her", "her", "herself"))
        self.hers = "his" if male else "hers"
        self.label = name if kind in ("boy", "girl") else f"{name} the {kind}"

    def fresh(self):
        self.intro, self.seen, self.count, self.limit, self.total = None, False, 0, 2, 0
        return self


class Thing:
    def __init__(self, noun, looks, tags, play, played, does, broke, fixed):
        self.noun, self.the, self.tags = noun, "the " + noun, tags.split()
        self.looks = [x.strip() for x in looks.split(",")]
        self.play, self.played, self.does, self.broke, self.fixed = play, played, does, broke, fixed


class Animal:
    def __init__(self, noun, looks, tags, sound, says, eats, goes):
        self.noun, self.the, self.tags = noun, "the " + noun, tags.split()
        self.looks = [x.strip() for x in looks.split(",")]
        self.sound, self.says, self.eats, self.goes = sound, says, eats, goes


class Place:
    def __init__(self, the, near, go, tags, spots, views):
        self.the, self.at, self.to, self.tags = the, f"{near} {the}", f"{go} {the}", tags.split()
        self.nooks = [s for s in spots if s.split()[0] in ("behind", "next", "beside", "near", "by")]  # to sit
        self.orders, self.views = list(itertools.permutations(spots)), views


def rows(text):
    return [[field.strip() for field in line.split("|")] for line in text.strip().splitlines()]


def places():
    out = []
    for block in words.PLACES.strip().split("\n\n"):
        head, spots, *views = block.splitlines()
        the, near, go, tags = [x.strip() for x in head.split("|")]
        out.append(Place(the, near, go, tags, [x.strip() for x in spots.split(";")], views))
    return out


THINGS = [Thing(*row) for row in rows(words.THINGS)]
ANIMALS = [Animal(*row) for row in rows(words.ANIMALS)]
PLACES = places()
KINDS = rows(words.KINDS)  # animals that can be people: noun, hands, home, tags
KIND_ROWS = {row[0]: row for row in KINDS}
GIRLS, BOYS = words.GIRLS.split(), words.BOYS.split()
NAMES = [(n, False) for n in GIRLS] + [(n, True) for n in BOYS]
RESERVED = {(n, p.the) for n, _ in NAMES for p in PLACES if held_out(n, p.the)}
people = {}


def person(name, male, row):
    """The person of this name, sex and kind (a row of KINDS; None: human), as new. They are kept, to be faster."""
    key = name, male, row and row[0]
    found = people.get(key)
    if found is None:
        found = people[key] = Person(name, male, *(row or ()))
    return found.fresh()


def having(items, wish):
    """The items that have one of the tags in `wish` (x,y), none of those with a minus (x,-y)."""
    want = [w for w in wish.split(",") if w and w[0] != "-"]
    shun = [w[1:] for w in wish.split(",") if w and w[0] == "-"]
    return [i for i in items
            if (not want or any(w in i.tags for w in want)) and not any(w in i.tags for w in shun)]


class Plot:
    def __init__(self, name, options, tell):
        unknown = set(options) - {"hero", "place", "thing", "animal", "sky", "time"}
        if unknown:
            raise ValueError(f"{name}: no option {unknown}")
        self.name, self.tell = name, tell
        self.hero = options.get("hero", "any")
        self.places = having(PLACES, options.get("place", ""))
        self.things = having(THINGS, options.get("thing", "toy"))
        self.animals = having(ANIMALS, options.get("animal", ""))
        self.house_animals = having(self.animals, "house")
        if len(self.house_animals) < 5:  # enough to find one that is not among the people of the story
            self.house_animals = having(ANIMALS, "house")
        self.sky = options.get("sky", "fine")
        self.times = [t.strip() for t in options.get("time", "morning,afternoon,morning,day").split(",")]
        self.held = [(n, p) for n in NAMES for p in self.places if (n[0], p.the) in RESERVED]
        if not (self.places and self.things) or len(self.animals) < 5:
            raise ValueError(f"{name}: no place, thing or animal fits")


class Cast:
    """Drawn anew for every story; r() is uniform in [0, 1)."""

    def __init__(self, r):
        self.r = r

    def pick(self, items):
        return items[int(self.r() * len(items))]

    def draw(self, plot, held):
        r, pick = self.r, self.pick
        self.skeleton, self.out, self.v = [], [], {}
        self.o, self.t = self.out.append, self.skeleton.append
        self.paragraph()
        if held:
            (name, male), self.L = pick(plot.held)
        else:
            while True:
                (name, male), self.L = pick(NAMES), pick(plot.places)
                if (name, self.L.the) not in RESERVED:
                    break
        human = plot.hero == "child" or (plot.hero == "any" and r() < 0.6)
        self.H = hero = person(name, male, None if human else pick(KINDS))
        self.adj, self.time, self.sky = pick(words.NATURES), pick(plot.times), plot.sky
        self.flags = flags = set(self.L.tags)
        flags.add("child" if human else "animal")
        flags.add(plot.sky)
        self.others = "the other children" if human else "the other animals"
        # Friends are mostly of the other sex: that leaves more pronouns unambiguous.
        self.F = friend = self.fresh(human, (not male) if r() < 0.7 else male, name, name)
        if human:
            friend.intro = " friend " + friend.name
        else:
            friend.intro = f" friend {friend.name} the {friend.kind}"
        little = self.fresh(human, r() < 0.5, name, friend.name)
        self.K = little = person(little.name, little.male, None if human else KIND_ROWS[hero.kind])
        self.sibling = "little brother" if little.male else "little sister"
        little.intro = f" {self.sibling} {little.name}"
        kin, kin_male = pick(words.FAMILY)
        self.G = person(kin, kin_male, None)
        self.G.intro = " " + kin.lower()
        role, noun, sex, *short = pick(words.GROWN_PEOPLE if human else words.GROWN_ANIMALS)
        while noun == hero.kind or noun == friend.kind:
            role, noun, sex = pick(words.GROWN_ANIMALS)
        self.P = person("the " + (short or [role])[0], sex == "m" or (sex == "?" and r() < 0.5), None)
        self.P.intro = "the " + role
        self.T = thing = pick(plot.things)
        look = pick(thing.looks)
        self.t_short = f"{look} {thing.noun}"
        size = pick(words.SIZES)
        self.t_a = a(f"{size} {self.t_short}" if r() < 0.35 and size not in look else self.t_short)
        self.t_the = "the " + self.t_short
        animals = plot.animals if "out" in self.flags else plot.house_animals
        self.A = pick(animals)
        while self.A.noun in (hero.kind, friend.kind, noun):
            self.A = pick(animals)
        self.a_a = a(f"{pick(self.A.looks)} {self.A.noun}")
        self.spots = pick(self.L.orders)
        self.views = self.last_day = None
        self.times = 0
        self.snack = pick(words.SNACKS)

    def fresh(self, human, male, taken, other):
        """Somebody with a name of his or her own, and of another kind than the main character."""
        name = other
        while name == taken or name == other:
            name = self.pick(BOYS if male else GIRLS)
        row = None
        if not human:
            row = self.pick(KINDS)
            while row[0] == self.H.kind:
                row = self.pick(KINDS)
        return person(name, male, row)

    def day(self):
        word = self.pick(SKIES[self.sky])
        while word == self.last_day:
            word = self.pick(SKIES[self.sky])
        self.last_day = word
        return word

    def when(self):
        """When something happens; the first time, that may be in the hour that the story began with (flag now)."""
        self.times += 1
        if self.times > 1:
            return self.pick(("the next day", "some days later", "a few days later", f"one {self.time}"))
        if "now" in self.flags:
            return self.pick(("after a while", "soon", "before long", "that day", "a little later"))
        return f"one {self.day()} {self.time}" if self.r() < 0.6 else f"one {self.time}"

    def view(self):
        """A sentence about the place; no sentence twice in a story."""
        if not self.views:
            self.views = self.L.views[:]
        return self.views.pop(int(self.r() * len(self.views)))

    # Mentions. A pronoun stands for whoever of that sex was mentioned last, and only if that was at the start
    # of a sentence or nobody else of that sex was mentioned before it in the paragraph.

    def paragraph(self):
        self.last, self.clear = [None, None], [True, True]

    def named(self, p, start, case=""):
        if p.seen or p.intro is None:
            text = p.name
        elif p is self.P:
            text = p.intro
        elif self.last[self.H.male] is self.H:
            text = self.H.his + p.intro
        else:
            text = self.H.name + "'s" + p.intro
            self.noted(self.H, start)
        p.seen, p.count, p.limit = True, 0, 1 + int(self.r() * 2)
        p.total += 1
        self.noted(p, start)
        return text + case

    def newcomer(self):
        """The friend comes in as a stranger: a boy, a small bear."""
        self.F.intro = None
        return a(self.F.kind)

    def label(self, start=False):
        self.name(self.H, start)
        return self.H.label

    def both(self, p):
        self.last[self.H.male] = None
        other = p.name if p.seen or p.intro is None else self.H.his + p.intro
        p.seen, p.count, p.limit = True, 0, 2
        self.last[p.male], self.clear[p.male] = p, True
        self.last[self.H.male], self.clear[self.H.male] = self.H, p.male != self.H.male
        self.H.count, self.H.limit = 0, 2
        return f"{self.H.name} and {other}"

    def known(self, p):
        return self.last[p.male] is p and self.clear[p.male]

    def clear_enough(self, p):
        """A sentence may begin with the pronoun: few have since the name, which came in every third beat or so."""
        return p.count < p.limit and (p is not self.H or p.total * 2.5 + 2 >= len(self.skeleton))

    def noted(self, p, start):
        if self.last[p.male] not in (None, p):
            self.clear[p.male] = start
        self.last[p.male] = p

    def subject(self, p, start):
        if self.known(p) and (not start or self.clear_enough(p)):
            p.count += start
            return p.he
        return self.named(p, start)

    def object(self, p, start):
        return p.him if self.known(p) else self.named(p, start)

    def owner(self, p, start):
        if self.known(p) and (not start or self.clear_enough(p)):
            p.count += start
            return p.his
        return self.named(p, start, "'s")

    def name(self, p, start):
        p.seen, p.count = True, 0
        p.total += 1
        self.noted(p, start)
        return p.name

    def tag(self, p, verb):
        if self.known(p) and self.clear_enough(p):
            return f"{p.he} {verb}"
        name = self.named(p, True)
        return f"{verb} {name}" if self.r() < 0.6 else f"{name} {verb}"
