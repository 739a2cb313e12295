"""The language of plots/*.txt and beats.txt, made into Python functions once per process.

A file has sections. `== name key=value ...` begins a plot, `:: name` a shared beat. Blank lines part the
beats of a section; a beat is a list of ways to tell it, of which one is taken:

    - text                one way; the lines below it, indented, go on with it
    -#seen text           taking this way sets the flag `seen`
    -(seen !child) text   this way only where `seen` is set and `child` is not
    ?40                   above the ways: the whole beat is told in 40 % of the stories
    ~                     alone: a new paragraph may begin here
    $spot = a | b         alone: a variable of the story; `$spot, sound = a / b | c / d` sets two
    +flag 40              alone: sets a flag in 40 % of the stories
    # text                a comment

In a text:

    [a|b|(flag)c]         one of these, also nested; [|a] is a or nothing
    {H}                   a token: see PEOPLE and WORDS below; {%happy} tells a shared beat
    <H: Stop! Come here.>          speech, with a tag before, within or behind it
    <H whispered to {Fm}: Stop!>   the same with a verb of its own

A sentence's first letter is made a capital by itself. Whether a token stands at the start of a
sentence must be known here, so the ways of [..] have to agree on it. `a` in front of a token becomes `an`
where it should.
"""

import re

# {H} subject: name or he; {Hm} him; {Hs} his; {Hn} the name always; {Hhe} {Hhim} {Hhis} the pronoun always.
# H main character, F friend, G family, P neighbour or helper, K little brother or sister.
PEOPLE = "HFGPK"
PRONOUNS = ("he", "him", "his", "hers", "himself")
WORDS = {  # token: expression
    "Hkind": "c.H.kind", "Fkind": "c.F.kind", "Hadj": "c.adj",  "Fa": "c.newcomer()",
    "hands": "c.H.hands", "home": "c.H.home", "others": "c.others", 
    "Hid": "c.label()", "HF": "c.both(c.F)", "HK": "c.both(c.K)", "HG": "c.both(c.G)", "HP": "c.both(c.P)",
     "Ksib": "c.sibling", 
    "L": "c.L.the", "at": "c.L.at", "to": "c.L.to", "spot1": "c.spots[0]", "spot2": "c.spots[1]",
    "spot3": "c.spots[2]", "spot4": "c.spots[3]", "when": "c.when()", "spot5": "c.spots[4]", "nook": "c.pick(c.L.nooks)", "view": "c.view()",
    "T": "c.T.the", "Ta": "c.t_a", "Tc": "c.t_the", "Tn": "c.T.noun", "Tcn": "c.t_short", "play": "c.T.play",
    "played": "c.T.played", "does": "c.T.does", "broke": "c.T.broke", "fixed": "c.T.fixed",
    "A": "c.A.the", "Am": "c.A.the", "Aa": "c.a_a", "An": "c.A.noun", "Asound": "c.A.sound", "Asays": "c.A.says",
    "Aeats": "c.A.eats", "Agoes": "c.A.goes",
    "day": "c.day()", "time": "c.time", "snack": "c.snack",
}
VERBS = {".": ("said",), "!": ("said", "said", "said", "cried", "called"),
         "?": ("asked", "asked", "asked", "said")}
OPENS_SENTENCE = re.compile(r'(?:^|\s)"$|[.!?]\s*$|\."\s*$|[!?]"$')


def article(text):
    return ("an " if text[0] in "aeiou" else "a ") + text


class Error(Exception):
    pass


def parse(text, where):
    """text -> a sequence of ("lit", s), ("tok", name), ("alt", ways), ("say", who, verb, seq)."""
    pos = 0

    def sequence(stop):
        nonlocal pos
        out = []
        while pos < len(text) and text[pos] not in stop:
            ch = text[pos]
            pos += 1
            if ch == "[":
                ways = []
                while True:
                    needs, sets = condition()
                    ways.append((needs, sets, sequence("|]")))
                    pos += 1
                    if pos > len(text):
                        raise Error(f"{where}: [ without ] in {text!r}")
                    if text[pos - 1] == "]":
                        break
                out.append(("alt", ways))
            elif ch == "{":
                end = text.index("}", pos)
                out.append(("tok", text[pos:end]))
                pos = end + 1
            elif ch == "<":
                who = text[pos]
                pos += 1
                verb = sequence(":")
                pos += 2
                said = sequence(">")
                pos += 1
                out.append(("say", who, strip(verb), said))
            elif ch in "]}>":
                raise Error(f"{where}: stray {ch} in {text!r}")
            else:
                end = pos
                while end < len(text) and text[end] not in "[]{}<>" + stop:
                    end += 1
                out.append(("lit", text[pos - 1:end]))
                pos = end
        return out

    def condition():
        nonlocal pos
        match = re.compile(r"(#\w+)?(\([\w !]+\))?").match(text, pos)
        pos = match.end()
        if match.group():
            while pos < len(text) and match.group(1) and text[pos] == " ":
                pos += 1
        return (match.group(2) or "()")[1:-1].split(), (match.group(1) or "")[1:]

    text = re.sub(r"\{H\} and \{([FKGP])\}", r"{H\1}", text)
    return sequence("")


def strip(seq):
    """Without the blank in front of a verb."""
    if seq and seq[0][0] == "lit":
        seq = [("lit", seq[0][1].lstrip())] + seq[1:]
    return [node for node in seq if node != ("lit", "")]


def cut(seq):
    """Cuts speech behind its first sentence: (first, its mark or '', rest)."""
    for i, node in enumerate(seq):
        if node[0] == "lit":
            match = re.search(r"[.!?](?= |$)", node[1])
            if match:
                at = match.end()
                first = seq[:i] + [("lit", node[1][:at - 1])]
                rest = strip([("lit", node[1][at:])] + seq[i + 1:])
                return first, match.group(), rest
        elif node[0] == "alt" and any("." in str(way) or "!" in str(way) or "?" in str(way) for way in node[1]):
            return seq, "", []
    return seq, "", []


class Writer:
    """Writes the body of one Python function."""

    def __init__(self, where, variables):
        self.where, self.variables = where, variables
        self.lines, self.depth = [], 1
        self.ways = set()  # the numbers of the ways to tell the beats

    def put(self, line):
        self.lines.append("    " * self.depth + line)

    def sequence(self, seq, start):
        """Returns whether the next token begins a sentence."""
        article = False
        for i, node in enumerate(seq):
            follower = seq[i + 1] if i + 1 < len(seq) else ("",)
            if article:
                node = (*node, True)
            article = (node[0] == "lit" and follower[0] == "tok" and bool(re.search(r'(^|[ "])[aA] $', node[1]))
                       and (follower[1] in WORDS or follower[1] in self.variables))
            if article:  # is it "a" or "an"?
                node = ("lit", node[1][:-2])
            start = getattr(self, node[0])(start, *node[1:])
        return start

    def lit(self, start, text):
        if start:
            text = re.sub(r'^(\s*"?)([a-z])', lambda m: m.group(1) + m.group(2).upper(), text)
        text = re.sub(r'([.!?] +|\." +)([a-z])', lambda m: m.group(1) + m.group(2).upper(), text)
        self.put(f"o({text!r})")
        return bool(OPENS_SENTENCE.search(text)) or (start and not text.strip())

    def tok(self, start, name, article=False):
        if name.startswith("%"):
            if not start:
                raise Error(f"{self.where}: {{{name}}} within a sentence")
            self.put(f"b_{name[1:]}(c)")
            return True
        if name.startswith("^"):
            name, start = name[1:], True
        if name[0].isupper() and name.lower() in PRONOUNS:
            name = name.lower()
        full = "H" + name if name in PRONOUNS else name
        if name in self.variables:
            expr = f"v[{name!r}]"
        elif name in WORDS:
            expr = WORDS[name]
        elif full[0] in PEOPLE and full[1:] in PRONOUNS:
            self.put(f"o(c.{full[0]}.{full[1:]}{'.capitalize()' if start else ''})")
            return False
        elif full[0] in PEOPLE and full[1:] in ("", "m", "s", "n"):
            how = {"": "subject", "m": "object", "s": "owner", "n": "name"}[full[1:]]
            self.put(f"o({'up(' if start else ''}c.{how}(c.{full[0]}, {start}){')' if start else ''})")
            return False
        else:
            raise Error(f"{self.where}: no token {{{name}}}")
        if article:
            expr = f"article({expr})"
        self.put(f"o(up({expr}))" if start else f"o({expr})")
        return name in ("view", "does")

    def alt(self, start, ways, trace=None):
        plain = all(not n and not s and len(q) <= 1 and all(x[0] == "lit" for x in q) for n, s, q in ways)
        ends = set()
        if any(needs for needs, _, _ in ways):
            self.put("L = []")
            for i, (needs, _, _) in enumerate(ways):
                test = " and ".join(f"{n[1:]!r} not in fl" if n[0] == "!" else f"{n!r} in fl" for n in needs)
                self.put(f"if {test}: L.append({i})" if test else f"L.append({i})")
            self.put("k = L[int(r() * len(L))]")
        elif plain and trace is None:
            texts = []
            for _, _, q in ways:
                sub = Writer(self.where, self.variables)
                ends.add(sub.sequence(q, start))
                texts.append(eval(sub.lines[0].strip()[2:-1]) if q else "")
            self.put(f"o({tuple(texts)!r}[int(r() * {len(texts)})])")
            return self.agreed(ends, ways)
        else:
            self.put(f"k = int(r() * {len(ways)})")
        if trace is not None:
            self.put(f"t({trace} + k)")
            self.ways.update(range(trace, trace + len(ways)))
        for i, (_, sets, q) in enumerate(ways):
            self.put(f"{'el' if i else ''}if k == {i}:" if i < len(ways) - 1 or not i else "else:")
            self.depth += 1
            if sets:
                self.put(f"fl.add({sets!r})")
            ends.add(self.sequence(q, start))
            self.put("pass") if not q and not sets else None
            self.depth -= 1
        return self.agreed(ends, ways)

    def agreed(self, ends, ways):
        if len(ends) != 1:
            raise Error(f"{self.where}: some of these end a sentence, some do not: {ways}")
        return ends.pop()

    def say(self, start, who, verb, said):
        first, mark, rest = cut(said)
        whole = said if not rest else None
        person = f"c.{who}"
        if not start:
            raise Error(f"{self.where}: speech within a sentence: {said}")
        self.put(f"k = r(); w = {VERBS[mark or '.']!r}[int(r() * {len(VERBS[mark or '.'])})]")
        self.put(f"if k < {0.4 if mark else 2}:")  # Tom said, "Stop! Come here."
        self.depth += 1
        self.put(f"o(up(c.subject({person}, True)))")
        if verb:
            self.sequence([("lit", " ")] + verb, False)
            self.put("o(', \"')")
        else:
            self.put("o(' ' + w + ', \"')")
        self.speech(said)
        self.put("o('\"')")
        self.depth -= 1
        if mark:
            tail = "," if mark == "." else mark
            self.put("else:")  # "Stop!" said Tom. "Come here."  or  "Stop! Come here," said Tom.
            self.depth += 1
            self.put("o('\"')")
            if rest:
                last = self.closing(rest)
                if last is not None:
                    self.put("if k < .6:")
                    self.depth += 1
                    self.speech(first + [("lit", mark + " ")] + last[0])
                    self.put(f"o({last[1]!r} + '\" ')")
                    self.put(f"w = {VERBS[last[2]]!r}[int(r() * {len(VERBS[last[2]])})]")
                    self.tag(person, verb)
                    self.put("o('.')")
                    self.depth -= 1
                    self.put("else:")
                    self.depth += 1
                self.speech(first)
                self.put(f"o({tail!r} + '\" ')")
                self.tag(person, verb)
                self.put("o('. \"')")
                self.speech(rest)
                self.put("o('\"')")
                self.depth -= last is not None
            else:
                self.speech(first)
                self.put(f"o({tail!r} + '\" ')")
                self.tag(person, verb)
                self.put("o('.')")
            self.depth -= 1
        return True

    def speech(self, seq):
        self.put("before = c.last[:], c.clear[:]")  # who is named in speech is not who "he" is behind it
        self.sequence(seq, True)
        self.put("c.last, c.clear = before")

    def closing(self, rest):
        """rest without its last mark, that mark before a tag, and the mark; None where it ends otherwise."""
        if rest[-1][0] != "lit" or rest[-1][1][-1] not in ".!?":
            return None
        mark = rest[-1][1][-1]
        return rest[:-1] + [("lit", rest[-1][1][:-1])], "," if mark == "." else mark, mark

    def tag(self, person, verb):
        if len(verb) == 1 and verb[0][0] == "lit" and " " not in verb[0][1]:
            self.put(f"o(c.tag({person}, {verb[0][1]!r}))")
        elif verb:
            self.put(f"o(c.subject({person}, False))")
            self.sequence([("lit", " ")] + verb, False)
        else:
            self.put(f"o(c.tag({person}, w))")


def sections(text):
    """(kind, name, options, [beats]) for each section; a beat is a list of its lines, continued lines joined."""
    out = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("# ") or line == "#":
            continue
        head = re.match(r"(==|::) (\w+)(.*)$", line)
        if head:
            options = dict(word.split("=") for word in head.group(3).split())
            out.append((head.group(1), head.group(2), options, [[]]))
        elif not line.strip():
            if out and out[-1][3][-1]:
                out[-1][3].append([])
        elif line[0] == " ":
            out[-1][3][-1][-1] += " " + line.strip()
        else:
            out[-1][3][-1].append(line.strip())
    return [(k, n, o, [b for b in beats if b]) for k, n, o, beats in out]


def way(line, where):
    match = re.match(r"-(#\w+)?(\([\w !]+\))? (.*)$", line)
    if not match:
        raise Error(f"{where}: not a line of a beat: {line!r}")
    return (match.group(2) or "()")[1:-1].split(), (match.group(1) or "")[1:], parse(match.group(3), where)


def function(name, where, beats, base, whole):
    """The source of a function that tells the beats; whole: a plot, which sets blanks and paragraphs."""
    w = Writer(where, set())
    w.put("o = c.o; v = c.v; fl = c.flags; t = c.t; r = c.r")
    if whole:
        w.put("sp = ''")
    number = 0
    for beat in beats:
        first = beat[0]
        if first == "~":
            w.put("if r() < .7: sp = '\\n'; c.paragraph()")
        elif first[0] == "$":
            for line in beat:
                variable(w, line, where)
        elif first[0] == "+":
            flag, chance = first[1:].split()
            w.put(f"if r() < {int(chance) / 100}: fl.add({flag!r})")
        else:
            lines = beat
            depth = w.depth
            if first[0] == "?":
                w.put(f"if r() < {int(first[1:] or 50) / 100}:")
                w.depth += 1
                lines = beat[1:]
            ways = [way(line, where) for line in lines]
            if whole:
                w.put("o(sp); sp = ' '")
            elif number:
                w.put("o(' ')")
            end = w.alt(True, ways, trace=base + number * 50)
            if not end:
                raise Error(f"{where}: a beat does not end its sentence: {lines}")
            w.depth = depth
        number += 1
    return f"def {name}(c):\n" + "\n".join(w.lines) + "\n", w.ways


def variable(w, line, where):
    names, values = re.match(r"\$([\w, ]+)= *(.*)$", line).groups()
    names = [n.strip() for n in names.split(",")]
    w.variables.update(names)
    ways = [(way_needs, sets, [field.strip() for field in text.split(" / ")])
            for way_needs, sets, text in (split_way(x.strip()) for x in values.split(" | "))]
    if any(n for n, _, _ in ways):
        raise Error(f"{where}: a condition in {line!r}")
    w.put(f"k = int(r() * {len(ways)})")
    for i, (_, sets, fields) in enumerate(ways):
        if len(fields) != len(names):
            raise Error(f"{where}: {len(names)} names, {len(fields)} fields in {line!r}")
        w.put(f"{'el' if i else ''}if k == {i}:" if i < len(ways) - 1 or not i else "else:")
        w.depth += 1
        if sets:
            w.put(f"fl.add({sets!r})")
        for name, field in zip(names, fields):
            w.put("m = []; o = m.append")
            w.sequence(parse(field, where), False)
            w.put(f"o = c.o; v[{name!r}] = ''.join(m)")
        w.depth -= 1


def split_way(text):
    match = re.match(r"(?:#(\w+) )?(.*)$", text)
    return [], match.group(1) or "", match.group(2)


def build(texts):
    """{file name: text} -> the plots as (name, options, function), the flags that they set, and the
    numbers of all their ways."""
    plots, space, base, flags, told = [], {"article": article, "up": lambda s: s[:1].upper() + s[1:]}, 0, set(), set()
    for where, text in texts.items():
        for kind, name, options, beats in sections(text):
            label = ("plot_" if kind == "==" else "b_") + name
            if label in space:
                raise Error(f"{where}: {name} is there twice")
            source, ways = function(label, f"{where}: {name}", beats, base, kind == "==")
            base += 50 * len(beats)
            told |= ways
            flags.update(re.findall(r"fl\.add\('(\w+)'\)", source))
            exec(compile(source, f"<{where}: {name}>", "exec"), space)
            if kind == "==":
                plots.append((name, options, space[label]))
    for name in re.findall(r"\{%(\w+)\}", "\n".join(texts.values())):
        if "b_" + name not in space:
            raise Error(f"no beat {name}")
    return plots, flags, told
