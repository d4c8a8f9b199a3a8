"""The village of the built-in tales: who lives there, what they own, and what can go wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pronouns:
    """The three forms of a personal pronoun: she, her, her."""

    subject: str
    possessive: str
    object: str


SHE = Pronouns("she", "her", "her")
HE = Pronouns("he", "his", "him")
THEY = Pronouns("they", "their", "them")


@dataclass(frozen=True)
class Wish:
    """Something that a person wants to make: verb, its past tense, product, the thing it needs."""

    verb: str
    past: str
    product: str
    thing: str


@dataclass(frozen=True)
class Pet:
    """The animal that lives with a person and comes along on every errand."""

    name: str
    kind: str
    gesture: str


@dataclass(frozen=True)
class Person:
    """Somebody who can be the hero of a story."""

    name: str
    pronouns: Pronouns
    trade: str
    trait: str
    home: str
    pet: Pet
    fear: str
    fears: str
    food: str
    wishes: tuple[Wish, ...]


@dataclass(frozen=True)
class Recipient:
    """Who the present is for, and what they do when they get it (past tense, after "who")."""

    name: str
    pronouns: Pronouns
    joys: tuple[str, ...]


@dataclass(frozen=True)
class Helper:
    """An animal that lends its tool."""

    name: str
    kind: str
    pronouns: Pronouns
    home: str
    tool: str


@dataclass(frozen=True)
class Trouble:
    """What keeps a hero from a thing, in past and present tense, and how one tool overcomes it."""

    past: str
    present: str
    complaint: str
    tool: str
    solution: str


@dataclass(frozen=True)
class Thing:
    """Something that a wish needs, the place where it is found, and the troubles of that place."""

    name: str
    place: str
    where: str
    troubles: tuple[Trouble, ...]


# Fixed facts: a story draws its plot and its phrases, never these. Rows keep their own line breaks.
# fmt: off
PEOPLE = (
    Person("Mara", SHE, "baker", "cheerful", "in the mill by the river",
           Pet("Pip", "grey cat", "yawned and licked one paw"), "goose", "geese", "pancakes", (
               Wish("bake", "baked", "apple cake", "red apples"),
               Wish("bake", "baked", "honey cake", "sweet honey"),
               Wish("bake", "baked", "mushroom pie", "brown mushrooms"))),
    Person("Tom", HE, "potter", "patient", "in the yellow house by the bridge",
           Pet("Wuff", "brown dog", "barked twice"), "snail", "snails", "cheese", (
               Wish("make", "made", "round jug", "red clay"),
               Wish("paint", "painted", "blue plate", "blue flowers"),
               Wish("make", "made", "sparkling bowl", "shiny stones"))),
    Person("Lena", SHE, "weaver", "gentle", "in the cottage on the heath",
           Pet("Snow", "white goat", "nibbled at a shoe"), "beetle", "beetles", "plum jam", (
               Wish("weave", "wove", "warm blanket", "white wool"),
               Wish("weave", "wove", "blue shawl", "blue flowers"),
               Wish("sew", "sewed", "soft pillow", "white feathers"))),
    Person("Anton", HE, "cook", "hungry", "at the inn by the market",
           Pet("Rudi", "pink piglet", "rolled in the mud"), "turkey", "turkeys", "noodles", (
               Wish("cook", "cooked", "mushroom soup", "brown mushrooms"),
               Wish("cook", "cooked", "pumpkin soup", "yellow pumpkins"),
               Wish("cook", "cooked", "apple pudding", "red apples"))),
    Person("Ida", SHE, "gardener", "busy", "in the green house",
           Pet("Dot", "speckled hen", "scratched in the sand"), "moth", "moths", "carrots", (
               Wish("grow", "grew", "tall sunflower", "clear water"),
               Wish("plant", "planted", "apple tree", "red apples"),
               Wish("bind", "bound", "blue wreath", "blue flowers"))),
    Person("Oskar", HE, "toymaker", "playful", "above the post office",
           Pet("Hop", "black rabbit", "wiggled his nose"), "duck", "ducks", "raisins", (
               Wish("sew", "sewed", "toy elephant", "white wool"),
               Wish("make", "made", "game of marbles", "shiny stones"),
               Wish("build", "built", "pumpkin coach", "yellow pumpkins"))),
    Person("Nelly", SHE, "tailor", "proud", "in the little red shop",
           Pet("Coco", "green parrot", "whistled a song"), "worm", "worms", "cherries", (
               Wish("sew", "sewed", "feather hat", "white feathers"),
               Wish("sew", "sewed", "long coat", "white wool"),
               Wish("sew", "sewed", "blue dress", "blue flowers"))),
    Person("Jon", HE, "painter", "dreamy", "in the crooked house",
           Pet("Slow", "old tortoise", "pulled in his head"), "rooster", "roosters", "toast", (
               Wish("paint", "painted", "picture of the sea", "blue flowers"),
               Wish("paint", "painted", "picture of a feast", "red apples"),
               Wish("paint", "painted", "picture of the autumn", "yellow pumpkins"))),
    Person("Rosa", SHE, "doctor", "clever", "in the hut beside the meadow",
           Pet("Milo", "tiny hamster", "hid in a pocket"), "toad", "toads", "pears", (
               Wish("stir", "stirred", "honey medicine", "sweet honey"),
               Wish("boil", "boiled", "bowl of oatmeal", "clear water"),
               Wish("boil", "boiled", "mushroom broth", "brown mushrooms"))),
    Person("Emil", HE, "musician", "noisy", "over the stable",
           Pet("Star", "spotted pony", "stamped his foot"), "butterfly", "butterflies", "nuts", (
               Wish("build", "built", "pumpkin drum", "yellow pumpkins"),
               Wish("make", "made", "clay whistle", "red clay"),
               Wish("make", "made", "stone rattle", "shiny stones"))),
    Person("Clara", SHE, "teacher", "curious", "in the school by the lime tree",
           Pet("Ink", "small crow", "hopped about"), "caterpillar", "caterpillars", "popcorn", (
               Wish("mix", "mixed", "pot of blue paint", "blue flowers"),
               Wish("make", "made", "feather pen", "white feathers"),
               Wish("make", "made", "counting game", "shiny stones"))),
    Person("Ben", HE, "lampmaker", "careful", "in the lighthouse by the lake",
           Pet("Woolly", "young lamb", "bleated softly"), "lizard", "lizards", "potatoes", (
               Wish("carve", "carved", "pumpkin lamp", "yellow pumpkins"),
               Wish("make", "made", "clay lamp", "red clay"),
               Wish("make", "made", "glittering lamp", "shiny stones"))),
    Person("Greta", SHE, "tea maker", "friendly", "in the blue wagon",
           Pet("Max", "lazy camel", "lay down and snored"), "ladybug", "ladybugs", "cookies", (
               Wish("brew", "brewed", "pot of mint tea", "clear water"),
               Wish("brew", "brewed", "pot of honey tea", "sweet honey"),
               Wish("brew", "brewed", "pot of apple tea", "red apples"))),
    Person("Paul", HE, "shoemaker", "shy", "below the town hall",
           Pet("Tick", "little mouse", "ran up a sleeve"), "peacock", "peacocks", "rice", (
               Wish("sew", "sewed", "pair of slippers", "white wool"),
               Wish("make", "made", "pair of feather boots", "white feathers"),
               Wish("make", "made", "pair of sparkling shoes", "shiny stones"))),
)

RECIPIENTS = (
    Recipient("Grandmother Anna", SHE, (
        "hugged {hero} until her glasses fell off", "forgot her tea for joy")),
    Recipient("the old king", HE, (
        "danced on the table in his socks", "bowed until his crown fell off")),
    Recipient("the children", THEY, (
        "cheered and danced in a ring", "threw their caps into the air")),
    Recipient("the lonely giant", HE, (
        "laughed until the hills shook", "wept one big tear of joy")),
    Recipient("the strict mayor", SHE, (
        "smiled for the first time", "gave the whole village a holiday")),
    Recipient("the little princess", SHE, (
        "jumped up and down on her bed", "kissed {hero} on the nose")),
)

HELPERS = (
    Helper("Bodo", "badger", HE, "under the hazel bush", "long ladder"),
    Helper("Olga", "owl", SHE, "in the hollow oak", "bright lantern"),
    Helper("Felix", "fox", HE, "behind the stone wall", "silver flute"),
    Helper("Otto", "otter", HE, "among the reeds", "small boat"),
    Helper("Bruno", "bear", HE, "between the rocks", "strong rope"),
    Helper("Maggie", "magpie", SHE, "on the church roof", "golden key"),
    Helper("Suse", "squirrel", SHE, "at the top of the pine", "needle and thread"),
    Helper("Harald", "heron", HE, "on the wooden pier", "fishing net"),
    Helper("Molly", "mole", SHE, "below the rose bed", "sharp spade"),
    Helper("Fritz", "frog", HE, "in the pond", "big umbrella"),
    Helper("Hedda", "hedgehog", SHE, "in a pile of leaves", "straw broom"),
    Helper("Dora", "donkey", SHE, "in the old barn", "wooden cart"),
    Helper("Berta", "cow", SHE, "near the fence", "loud bell"),
)

THINGS = (
    Thing("red apples", "the orchard", "behind the school", (
        Trouble("all the apples hung much too high", "the apples hang too high",
                "We cannot reach a single one!", "long ladder",
                "{hero} leaned the ladder against a tree and filled a basket with red apples."),
        Trouble("the gate of the orchard was locked", "the orchard gate is locked",
                "How can we get in?", "golden key",
                "The key turned, the gate opened, and {hero} filled a basket with red apples."),
        Trouble("the basket of apples was much too heavy", "the basket of apples is too heavy",
                "We will never get it home!", "wooden cart",
                "{hero} rolled all the red apples down the road in the cart."))),
    Thing("sweet honey", "the meadow", "below the castle", (
        Trouble("the bees were cross and let nobody come near", "the bees are cross",
                "They will never share with us!", "silver flute",
                "{hero} played the flute until the bees slept, and filled a jar with sweet honey."),
        Trouble("the honey jar fell into the stream", "the honey jar falls into the stream",
                "Look, it is floating away!", "fishing net",
                "{hero} threw the net and pulled out the jar of sweet honey."),
        Trouble("it began to rain into the honey jar", "it rains into the honey jar",
                "Soon we will have honey soup!", "big umbrella",
                "{hero} held the umbrella over the jar, and no rain fell into the sweet honey."))),
    Thing("clear water", "the well", "behind the chapel", (
        Trouble("the bucket fell deep down into the well", "the bucket falls into the well",
                "How can we get it back?", "strong rope",
                "{hero} let down the rope and pulled up the bucket, full of clear water."),
        Trouble("the lid of the well was locked", "the lid of the well is locked",
                "Now we cannot get a single drop!", "golden key",
                "The key turned, the lid opened, and {hero} filled a bucket with clear water."),
        Trouble("the full bucket was much too heavy", "the bucket of water is too heavy",
                "We cannot carry it home!", "wooden cart",
                "{hero} rolled the clear water down the road in the cart and lost no drop."))),
    Thing("brown mushrooms", "the forest", "beyond the bridge", (
        Trouble("it was as dark as night under the trees", "it is dark in the forest",
                "I cannot even see my feet!", "bright lantern",
                "In the light of the lantern {hero} found a basket full of brown mushrooms."),
        Trouble("old leaves lay over all the mushrooms", "leaves lie over the mushrooms",
                "How can we find them?", "straw broom",
                "{hero} swept the leaves away with the broom and saw brown mushrooms everywhere."),
        Trouble("there was a hole in the mushroom bag", "the mushroom bag has a hole",
                "They all fall out again!", "needle and thread",
                "{hero} sewed up the hole, and the brown mushrooms stayed in the bag."))),
    Thing("white wool", "the sheep farm", "above the village", (
        Trouble("the sheep were lost in the fog", "the sheep are lost in the fog",
                "Where can they be?", "loud bell",
                "{hero} rang the bell, and the sheep came running and gave {obj} white wool."),
        Trouble("the sheep were shy and ran away", "the sheep run away",
                "They will never come back!", "silver flute",
                "{hero} played the flute, and the sheep came dancing and gave {obj} white wool."),
        Trouble("it began to rain on the wool", "it rains on the wool",
                "It must not get wet!", "big umbrella",
                "{hero} opened the umbrella, and under it the white wool stayed dry."))),
    Thing("red clay", "the river bank", "below the mill", (
        Trouble("the ground was as hard as iron", "the clay is as hard as iron",
                "Nobody can dig here!", "sharp spade",
                "{hero} dug with the spade and filled a bucket with red clay."),
        Trouble("the clay was on the other side of the river", "the clay is across the river",
                "The water is too deep for us!", "small boat",
                "{hero} crossed the river in the boat and came back with red clay."),
        Trouble("the bucket of clay was much too heavy", "the bucket of clay is too heavy",
                "We cannot carry it home!", "wooden cart",
                "{hero} rolled the red clay down the road in the cart."))),
    Thing("white feathers", "the swan lake", "beyond the forest", (
        Trouble("the feathers lay on a far island", "the feathers lie on the island",
                "We cannot swim so far!", "small boat",
                "{hero} crossed the lake in the boat and found white feathers on the island."),
        Trouble("the wind blew the feathers into the water", "the feathers fall into the water",
                "Look, they are floating away!", "fishing net",
                "{hero} threw the net and pulled the white feathers out of the lake."),
        Trouble("there was a hole in the feather bag", "the feather bag has a hole",
                "They all fly away again!", "needle and thread",
                "{hero} sewed up the hole, and the white feathers stayed in the bag."))),
    Thing("shiny stones", "the cave", "under the waterfall", (
        Trouble("it was as dark as night in the cave", "it is dark in the cave",
                "I cannot even see my hands!", "bright lantern",
                "In the light of the lantern {hero} saw shiny stones everywhere."),
        Trouble("a big rock lay in front of the cave", "a rock lies in front of the cave",
                "How can we get in?", "strong rope",
                "{hero} pulled the rock away with the rope, and behind it lay shiny stones."),
        Trouble("the stones lay deep in the ground", "the stones lie deep in the ground",
                "Nobody can dig here!", "sharp spade",
                "{hero} dug with the spade and filled a bag with shiny stones."))),
    Thing("blue flowers", "the tower garden", "on the cliff", (
        Trouble("the garden door was locked", "the garden door is locked",
                "How can we get in?", "golden key",
                "The key turned, the door opened, and {hero} picked a basket of blue flowers."),
        Trouble("the flowers grew high up on the tower", "the flowers grow on the tower",
                "We cannot reach a single one!", "long ladder",
                "{hero} leaned the ladder against the tower and picked blue flowers."),
        Trouble("a grumpy ram let nobody come in", "a grumpy ram stands at the garden door",
                "He will never let us in!", "silver flute",
                "{hero} played the flute until the ram danced, and picked blue flowers."))),
    Thing("yellow pumpkins", "the field", "along the road", (
        Trouble("the pumpkins were much too heavy", "the pumpkins are too heavy",
                "We will never get them home!", "wooden cart",
                "{hero} rolled the yellow pumpkins down the road in the cart."),
        Trouble("cheeky sparrows sat on all the pumpkins", "sparrows sit on the pumpkins",
                "They will not let us have one!", "loud bell",
                "{hero} rang the bell until the sparrows flew off and left the yellow pumpkins."),
        Trouble("straw lay over all the pumpkins", "straw lies over the pumpkins",
                "How can we find them?", "straw broom",
                "{hero} swept the straw away with the broom and saw yellow pumpkins everywhere."))),
)
# fmt: on
