"""Short rhymes that say one name again and again, told between the stories: from them a model learns early
that a name which has been said is the one to say again. With stories alone it learned that late."""

import cast

VERBS = ["run", "jump", "sing", "swim", "hop", "dance", "climb", "read", "draw", "skip", "whistle", "row", "count",
         "cook", "knit", "laugh", "wave", "clap", "dig", "sew"]
WHEN = ["day", "night", "morning", "evening"]
LOOKS = ["small", "kind", "brave", "clever", "busy", "happy", "careful", "quiet", "cheerful", "curious"]


def calls(n, he, v, w):
    return (f"{n}, {n}, come out and {v[0]}! {n}, {n}, come out and {v[1]}! "
            f"{n} came out to {v[0]}, and {n} came out to {v[1]}. Well done, {n}!")


def can(n, he, v, w):
    return (f"{n} can {v[0]}. {n} can {v[1]}. {n} can {v[2]}, and {he} can {v[3]}. "
            f"Can {n} fly? No, {n} cannot fly. Good {w}, {n}!")


def who(n, he, v, w):
    return (f"Who can {v[0]}? {n} can {v[0]}! Who can {v[1]}? {n} can {v[1]}! "
            f'Who is so {v[4]}? "I am!" said {n}.')


def says(n, he, v, w):
    return (f'"Good {w}, {n}!" "Good {w}!" said {n}. "Will you {v[0]}, {n}?" "I will {v[0]}," said {n}. '
            f'"Will you {v[1]}, {n}?" "I will," said {n}, and {he} did.')


def likes(n, he, v, w):
    return (f"{n} is {v[4]}. {n} likes to {v[0]}. When {n} likes to {v[0]}, {he} wants to {v[1]}. "
            f"And when {he} wants to {v[1]}, {n} has to {v[2]}. Oh, {n}, {n}!")


FORMS = [calls, can, who, says, likes]


def rhyme(rng):
    name, male = rng.choice(cast.NAMES)
    verbs = rng.sample(VERBS, 4) + [rng.choice(LOOKS)]
    return rng.choice(FORMS)(name, "he" if male else "she", verbs, rng.choice(WHEN))
