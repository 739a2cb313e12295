"""Names, people, animals, things and places of the stories, as tables of plain words."""

# No name is also a word or a part of another name.
GIRLS = """Mia Lily Anna Nora Ella Molly Sara Emma Zoe Maya Lena Clara Hana Tilly Amy Julia Nina Kate Eva Lucy
Polly Sofia Hattie Olga Rosa Lulu Coco Bella Wendy Heidi"""
BOYS = """Fred Bert Sam Max Leo Jack Finn Oscar Noah Adam Luke Hugo Omar Peter Daniel Paul David Felix Henry Eli
Milo Otto Simon Toby Ravi Theo Bobo Pip Kofi Bruno"""

# animals that can be people: noun | hands | home | tags
KINDS = """
rabbit | paws | burrow | fur
mouse | paws | hole | fur
fox | paws | den | fur
bear | paws | cave | fur
squirrel | paws | nest | fur
hedgehog | paws | burrow | fur
duck | wings | nest | bird
frog | hands | home | smooth
cat | paws | house | fur
dog | paws | house | fur
pig | feet | house | smooth
owl | wings | nest | bird
turtle | feet | home | smooth
goat | feet | house | fur
lamb | feet | house | fur
mole | paws | tunnel | fur
badger | paws | den | fur
beaver | paws | home | fur
penguin | wings | home | bird
chick | wings | nest | bird
kitten | paws | house | fur
puppy | paws | house | fur
pony | feet | stable | fur
donkey | feet | stable | fur
elephant | feet | home | smooth
monkey | hands | home | fur
"""

FAMILY = [("Mom", False), ("Dad", True), ("Grandma", False), ("Grandpa", True), ("Mom", False), ("Dad", True)]

# Whoever else is big and can help: how he or she is called, the noun, the sex (m, f or ?),
# and how he or she is called from the second time on, where that is shorter
GROWN_PEOPLE = [
    ("baker", "baker", "?"), ("gardener", "gardener", "?"), ("farmer", "farmer", "?"), ("painter", "painter", "?"),
    ("teacher", "teacher", "?"), ("doctor", "doctor", "?"), ("fisherman", "fisherman", "m"),
    ("old woman next door", "woman", "f", "old woman"), ("old man next door", "man", "m", "old man"), ("shopkeeper", "shopkeeper", "?"),
    ("bus driver", "driver", "?"), ("carpenter", "carpenter", "?"), ("librarian", "librarian", "?"),
    ("policeman", "policeman", "m"), ("old sailor", "sailor", "m"), ("queen's cook", "cook", "f"),
    ("music teacher", "teacher", "?"), ("tall woman with the green hat", "woman", "f", "tall woman"),
    ("man with the long beard", "man", "m", "man"), ("clock maker", "clock maker", "?"),
]
GROWN_ANIMALS = [
    ("old owl", "owl", "?"), ("wise turtle", "turtle", "?"), ("big bear", "bear", "?"), ("gray goose", "goose", "?"),
    ("old goat", "goat", "?"), ("kind cow", "cow", "f"), ("tall horse", "horse", "?"), ("old badger", "badger", "?"),
    ("busy beaver", "beaver", "?"), ("mother hen", "hen", "f"), ("gray donkey", "donkey", "?"),
    ("old crow", "crow", "?"), ("quiet deer", "deer", "?"), ("white swan", "swan", "?"), ("big dog", "dog", "?"),
]
NATURES = ["little", "kind", "curious", "cheerful", "brave", "shy", "quiet", "clever", "happy", "busy", "young",
           "gentle", "small", "careful", "merry", "little"]
SIZES = ["little", "big", "small", "tiny", "lovely", "fine"]
SNACKS = ["an apple", "a piece of cake", "some nuts", "a bowl of soup", "a slice of bread", "some berries",
          "a warm bun", "a plate of pancakes", "a pear", "some cookies", "a cup of milk", "a bowl of rice",
          "some cheese", "a sweet orange", "a piece of pie", "some grapes", "a carrot", "a cup of warm tea"]

# noun | looks | tags | what one does with it | did | what is good about it | how it breaks | how it is mended
# small: can be lost; toy; light: wind can take it; float; make: can be made at home; gift; wear; loud: can be heard from afar; find
THINGS = """
kite | red, blue, yellow, green, purple | toy light make gift | fly it | flew it | it danced high up in the wind. | one of its sticks broke | tied a new stick to it
ball | red, blue, yellow, striped, green | toy small float gift round | bounce it | bounced it | it could jump higher than a chair. | it got a hole and all the air came out | put a patch on the hole and pumped it up
doll | soft, old, pretty, wooden | toy small gift make soft | hold it | held it | it had a kind smile and long hair. | its arm came off | sewed the arm back on with strong thread
teddy bear | brown, soft, old, white | toy small gift soft | hug it | hugged it | it was the best one to hug at night. | its ear came off | sewed the ear back on with brown thread
toy boat | red, wooden, blue, white | toy small float make gift | sail it | sailed it | it sailed like a real ship. | its mast broke | glued a new stick on it for a mast
toy car | red, blue, shiny, yellow, fast | toy small gift | push it | pushed it | it rolled fast and went far. | one of its wheels fell off | put the wheel back with a little screw
toy train | green, wooden, red, blue | toy gift | pull it | pulled it | it went round and round and never got tired. | one of its wheels fell off | glued the wheel back on
wooden horse | brown, white, old, painted | toy gift make | ride it | rode it | it rocked like a real horse in the field. | one of its legs broke | fixed the leg with glue and a nail
drum | red, round, loud, old | toy loud gift make | play it | played it | it went boom, boom, boom. | its skin tore | put a new skin on it and pulled it tight
flute | wooden, silver, thin | loud small gift make | play it | played it | it sang like a bird. | it cracked in the middle | closed the crack with wax
bell | silver, golden, shiny, brass | loud small gift find | ring it | rang it | it rang so clear that everyone smiled. | the little ball in it fell out | hung the little ball back inside
guitar | brown, small, old | loud gift | play it | played it | it made even sad songs sound sweet. | one of its strings broke | put a new string on it
whistle | tin, silver, wooden, yellow | toy loud small gift find | blow it | blew it | it could be heard on the other side of the hill. | it filled up with mud | washed it with warm water
hat | red, blue, straw, green, yellow, woolly | wear light small gift make find | wear it | wore it | it kept the sun out of the eyes. | it tore on a thorn | sewed the hole with blue thread
scarf | red, striped, blue, long, woolly, green | wear light small gift make find soft | wear it | wore it | it was as warm as a hug. | a thread came loose and it got a big hole | knitted the hole closed
coat | blue, warm, red, green | wear gift | wear it | wore it | it had two deep pockets. | its pocket tore | sewed the pocket with strong thread
umbrella | red, yellow, blue, spotted, green | wear light gift find | open it | opened it | it was big enough for two. | the wind turned it inside out and a rib broke | bent the rib back and tied it
backpack | blue, green, red, brown | wear gift find | carry it | carried it | it had room for lunch and a book. | its strap tore | sewed the strap on again
book | old, thick, blue, red, green | small gift find | read it | read it | it was full of pictures of ships and stars. | one of its pages tore | fixed the page with tape
blanket | blue, soft, yellow, woolly, warm | soft make gift | sleep under it | slept under it | it smelled like home. | it got a long tear | sewed a blue patch on it
basket | brown, round, straw, big | make gift find carry | carry it | carried it | it could hold ten apples. | its handle broke | tied a rope on it for a handle
lantern | little, paper, golden, old | light gift make find lamp | carry it | carried it | it made a warm, round light. | its paper tore | pasted new paper on it
paintbrush | thin, long, new | small gift | paint with it | painted with it | it could paint lines as thin as a hair. | its hairs fell out | tied new hairs on it
toy plane | white, wooden, red, paper | toy light small make gift | fly it | flew it | it could turn in the air like a bird. | its wing broke | glued the wing and waited until it was dry
balloon | red, blue, yellow, orange, pink | toy light gift | hold it | held it | it wanted to go up to the clouds. | it lost all its air | blew it up again and tied a knot
bicycle | red, blue, green, old | toy ride gift | ride it | rode it | it went faster than running. | its chain came off | put the chain back and cleaned it
sled | wooden, red, blue, fast | toy ride snow make gift | ride it | rode it | it went down the hill like the wind. | one of its boards cracked | nailed a new board on it
wagon | red, wooden, green, old | toy ride gift carry make | pull it | pulled it | it could carry big and heavy things. | one of its wheels came off | put the wheel back with a new nail
swing | wooden, new, old | make toy | swing on it | swung on it | it went up so high that one could see the roof. | its rope broke | tied a new, strong rope to it
music box | silver, little, wooden, golden | music small gift find | listen to it | listened to it | it played a slow, sweet song. | the song stopped in the middle | cleaned its tiny wheels with a brush
spinning top | red, striped, wooden, yellow | toy small gift make find | spin it | spun it | it hummed while it turned. | its tip broke | made a new tip from hard wood
puppet | wooden, funny, soft | toy small gift make | make it dance | made it dance | it could wave and bow. | one of its strings broke | tied a new string to it
shell | white, pink, shiny, round | small gift find sea | listen to it | listened to it | one could hear the sea in it. | it cracked | glued it with great care
stone | smooth, shiny, white, green | small gift find | hold it | held it | it was smooth and shone in the sun. | it broke in two | glued the two halves together
marble | blue, green, glass, golden | toy small gift find round | roll it | rolled it | it had a tiny cloud of color in it. | it got a deep scratch | rubbed it until it shone again
ring | golden, silver, shiny | small gift find | wear it | wore it | it shone like a little sun. | its stone fell out | set the stone back in its place
key | golden, rusty, silver, tiny | small find | turn it | turned it | it was old, and nobody knew what it opened. | it got bent | bent it straight with a hammer
button | blue, golden, shiny, red | small find | hold it | held it | it shone like a small moon. | it broke in two | glued it with care
feather | blue, white, long, gray | small light find gift | hold it | held it | it was so light that it could fly alone. | it got wet and bent | dried it in the sun
coin | golden, silver, old, shiny | small find | spin it | spun it | it had a king on one side. | it got dirty and dark | rubbed it until it shone again
watch | silver, golden, old | small find gift wear | listen to it | listened to it | it went tick, tock, tick, tock. | it stopped | cleaned its tiny wheels and wound it up
cup | blue, white, yellow, green | gift make cup | drink from it | drank from it | it kept milk warm for a long time. | its handle broke off | glued the handle back on
bowl | blue, wooden, round, white | gift make cup | eat from it | ate from it | it had a tiny fish painted inside. | it cracked | glued the crack with care
vase | blue, green, tall, white | gift cup | put flowers in it | put flowers in it | it made every flower look like a queen. | it broke into three pieces | glued the pieces together one by one
clock | old, brown, round, tall | gift tick | wind it | wound it | it said cuckoo every hour. | it stopped | cleaned its wheels and wound it up
mirror | round, silver, little | gift cup | look into it | looked into it | it made the room bright. | it got a long crack | put a new glass in it
picture | pretty, big, bright | gift make | look at it | looked at it | it showed a house, a tree and a yellow sun. | it tore in the middle | fixed it with tape from behind
crown | paper, golden, tall | toy wear light make gift | wear it | wore it | it made anybody look like a king. | it tore | pasted the two ends together
mask | green, funny, paper, striped | toy wear light make gift | wear it | wore it | it had a big nose and made everyone laugh. | its string broke | tied a new string to it
castle of blocks | tall, big, bright | build | play with it | played with it | it had four towers and a gate. | it fell down | built it up again, block by block
puzzle | new, big, hard | gift | work on it | worked on it | it showed a ship on the sea. | one piece was gone | cut a new piece from thick paper
jump rope | red, long, striped | toy small gift make | jump with it | jumped with it | it made a nice sound on the ground. | its handle came off | tied the handle on again
telescope | long, brass, old | gift look | look through it | looked through it | it made the moon as big as a plate. | its glass fell out | put the glass back and closed it with a ring
fishing rod | long, thin, new | gift make | fish with it | fished with it | it was long enough to reach the deep water. | its line broke | tied a new line to it
toy robot | silver, gray, funny | toy gift small | make it walk | made it walk | it walked and said beep. | it would not walk any more | put a new spring in it
toy rabbit | white, soft, gray | toy small gift soft make | hug it | hugged it | it had long ears that were good to hold. | its ear came off | sewed the ear back on with white thread
toy elephant | gray, soft, blue | toy small gift soft make | hug it | hugged it | it had a long, funny nose. | its tail came off | sewed the tail back on
paper bird | white, blue, yellow | toy light small make gift | fly it | flew it | it went up and down on the wind. | its wing tore | folded a new wing for it
flag | red, blue, white, bright | light make gift | wave it | waved it | it could be seen from far away. | the wind tore it | sewed the two parts together
box of paints | new, big, wooden | toy gift | paint with it | painted with it | it had all the colors of the rainbow. | it fell and the paints got mixed | cleaned every color with a wet cloth
snow globe | round, pretty, glass | gift small cup | shake it | shook it | it made snow fall on a tiny town. | it got a crack | closed the crack with glue
pillow | soft, yellow, blue, round | soft gift make | sleep on it | slept on it | it was as soft as a cloud. | it tore and the feathers came out | put the feathers back and sewed it closed
"""

# noun | looks | tags | it ... | says | eats | how it goes
ANIMALS = """
dog | brown, big, white, spotted, friendly | house pet land walk | barked | Woof | a bone | ran
puppy | small, brown, white, playful | house pet land baby walk | barked | Woof, woof | a piece of meat | ran
cat | gray, black, white, striped | house pet land climb | meowed | Meow | a bit of fish | crept
kitten | tiny, gray, black, white | house pet land baby climb | meowed | Mew | a little milk | ran
rabbit | white, gray, brown, small | house pet wild land | sniffed | Sniff | a carrot | hopped
duck | yellow, white, brown | bird water farm | quacked | Quack | some bread | waddled
duckling | tiny, yellow, wet | bird water baby farm | peeped | Peep | some bread | waddled
goose | white, gray, proud | bird water farm | honked | Honk | some grass | walked
hen | brown, white, fat | bird farm | clucked | Cluck | some corn | walked
chick | tiny, yellow | bird farm baby | peeped | Peep, peep | some corn | ran
bird | small, blue, brown, little | house bird wild fly | sang | Tweet | some seeds | flew
sparrow | small, brown, cheeky | house bird wild fly | chirped | Tweet, tweet | some crumbs | flew
robin | small, red, round | house bird wild fly | sang | Tweet | a few crumbs | flew
crow | black, clever, old | house bird wild fly thief | cawed | Caw | a nut | flew
owl | gray, sleepy, old | house bird wild fly night | hooted | Hoo, hoo | a beetle | flew
parrot | green, red, bright | house bird pet fly | talked | Hello | a nut | flew
squirrel | red, gray, quick | house wild land climb thief | chattered | Chit, chit | a nut | ran
mouse | tiny, gray, brown | house wild land small thief | squeaked | Squeak | some cheese | ran
hedgehog | small, brown, shy | house wild land small night | sniffed | Snuff | a bit of pear | walked
fox | red, young, thin | wild land night thief | barked | Yip | some meat | ran
frog | green, fat, small | wild water small | croaked | Croak | a fly | jumped
turtle | slow, old, green | wild water pet slow | sighed | Hm | some lettuce | walked
goat | white, brown, hungry | farm land thief | bleated | Maa | some leaves | walked
lamb | white, small, woolly | farm land baby | bleated | Baa | some grass | ran
sheep | white, woolly, fat | farm land | bleated | Baa | some grass | walked
cow | brown, black, big, gentle | farm land big | mooed | Moo | some hay | walked
calf | brown, young, soft | farm land baby | mooed | Moo | some hay | ran
horse | brown, black, tall | farm land big ride | neighed | Neigh | an apple | trotted
pony | white, brown, little | farm land ride | neighed | Neigh | an apple | trotted
donkey | gray, old, sleepy | farm land ride | brayed | Hee-haw | a carrot | trotted
pig | pink, fat, muddy | farm land | grunted | Oink | a potato | ran
deer | young, brown, shy | wild land | called | Oh | some leaves | ran
monkey | small, brown, funny | house pet climb thief | chattered | Eek | a banana | jumped
snail | tiny, slow, brown | wild small slow | made no sound | Hm | a leaf | crept
"""

# the place | at | to | tags; places in it to look into or hide in; sentences about it
PLACES = """
the park | in | to | out stage trees grass town live snowy
under a bench; behind the big tree; next to the swings; in the tall grass; by the gate
The swings went up and down in the wind.
A man fed the birds by the path.
The grass was soft and green.

the beach | at | to | out stage water sand live sea
behind a rock; under a beach chair; in the wet sand; next to a sand castle; beside a boat
The waves came in and went out again.
White birds called above the water.
The sand was warm under the feet.

the forest | in | to | out trees wild live snowy
under a bush; behind a fallen tree; in a pile of leaves; under a big mushroom; between two roots
The trees were tall and whispered in the wind.
A bird knocked on a tree, tock, tock, tock.
It smelled of leaves and earth.

the pond | at | to | out water grass live
among the reeds; under a flat stone; behind the willow; on a lily pad; in the mud
Frogs sat on the flat green leaves.
The water was as smooth as glass.
A dragonfly hung over the water.

the farm | on | to | out stage grass live snowy farm
behind the barn; under the cart; in the hay; next to the well; in the corn
The hens ran about in the yard.
The cows chewed slowly by the fence.
It smelled of hay and warm milk.

the meadow | in | to | out stage grass wild live
behind a tall flower; under a bush; in the long grass; next to the old fence; beside a big stone
Bees went from flower to flower.
The grass was full of small white flowers.
The wind made waves in the grass.

the hill | on | up | out grass wild live high snowy
behind a rock; under a thorn bush; in the long grass; beside the path; beneath the lonely tree
From up there, all the houses looked like toys.
The wind was stronger up there.
A narrow path went up to the top.

the lake | at | to | out water live trees
under an old boat; among the reeds; behind a log; between the stones; beneath the dock
Little waves ran to the shore.
The water was blue and very wide.
A fish jumped and fell back with a splash.

the river | by | to | out water live trees
under the bridge; behind a rock; among the reeds; in the soft mud; beside a log
The water ran fast and sang over the stones.
A leaf went by on the water like a boat.
A blue bird sat still above the water.

the garden | in | into | out grass live home snowy
behind the roses; under the apple tree; in the flower pot; next to the shed; among the beans
The roses smelled sweet.
A bee hummed around the flowers.
A snail walked slowly over a leaf.

the harbor | at | to | out stage water town live sea
behind a barrel; under a net; in an old boat; next to a pile of ropes; behind the fish boxes
The boats knocked softly against each other.
It smelled of salt and fish.
A big ship blew its horn.

the market | at | to | out stage town live
under a table; behind a pile of melons; between two boxes; next to the flower stand; in an empty basket
People called out what they had to sell.
It smelled of oranges and fresh bread.
A woman sold flowers of every color.

the village | in | to | out stage town live snowy
behind the well; under the bench; next to the church; beside the little bridge; behind a cart
The bell on the church rang.
Smoke came out of the chimneys.
Two old men sat on a bench and talked.

the playground | at | to | out town sand
under the slide; in the sandbox; behind the fence; next to the seesaw; beneath the climbing frame
The slide shone in the light.
The seesaw went up and down.
Somebody had built a big sand castle.

the orchard | in | to | out trees grass live farm
under a ladder; behind an apple tree; in a box of pears; in the high grass; next to the wall
The branches were heavy with fruit.
Red apples lay in the grass.
It smelled sweet, like apple juice.

the mountain | on | up | out wild live high snowy
behind a rock; in a small cave; under a pine tree; between two stones; beside the stream
There was snow at the very top.
A cold little stream ran down between the stones.
Far above, an eagle flew in circles.

the island | on | to | out water sand sea live
under a palm tree; behind a rock; in the white sand; beside the old boat; among the shells
There was blue water on every side.
The palm trees bent in the wind.
Small crabs ran sideways over the sand.

the cave | in | into | wild dark
behind a big rock; in a dark corner; under a flat stone; near the entrance; on a stone shelf
Drops of water fell, plip, plop.
Every word came back as an echo.
The walls were cool and wet.

the old mill | at | to | out water live farm
behind a sack; under the stairs; beside the big wheel; on the window sill; behind the door
The big wheel turned slowly in the stream.
It smelled of flour.
White dust lay on everything.

the bridge | on | onto | out water town live
between two boards; beside the stone wall; behind a post; next to the steps; under the lamp
The water went by far below.
Carts rolled over it all day.
The stones were warm from the sun.

the zoo | at | to | out town
behind the ticket house; under a bench; beside the monkey house; near the fountain; next to the ice cream stand
The monkeys swung from rope to rope.
A lion slept in the shade.
The elephants splashed water on each other.

the fair | at | to | out stage town
under a tent; behind the big wheel; next to the candy stand; beneath a table; beside the stage
Music came from everywhere.
The big wheel turned slowly against the sky.
It smelled of sugar and hot nuts.

the field | in | to | out grass live farm snowy
behind a haystack; under the fence; beside the old cart; in the tall wheat; next to the scarecrow
The wheat moved like a yellow sea.
A scarecrow stood in the middle and seemed to wave.
A lark sang high up in the air.

the valley | in | to | out grass wild live snowy
behind a rock; under the old oak; beside the stream; in the ferns; between the roots of a tree
Hills stood all around it like sleeping giants.
A small stream ran through the middle.
The mist lay low over the grass.

the town square | in | to | out stage town live snowy
behind the fountain; under a bench; next to the lamp; beside the steps; behind a flower tub
Pigeons walked about on the stones.
The big clock on the tower struck the hour.
Water jumped up and down in the fountain.

the kitchen | in | into | in home warm
under the table; behind the stove; in the bread box; on the top shelf; in the drawer
Something good was cooking on the stove.
The kettle began to sing.
The floor was warm and clean.

the attic | in | up to | in home dark
in an old trunk; behind a broken chair; under a dusty sheet; on a beam; in a hat box
Dust danced in the light of the little window.
The boards creaked at every step.
Old things stood everywhere.

the barn | in | into | in stage farm dark
in the hay; behind the ladder; under the cart; in an empty stall; behind a bucket
It smelled of hay.
Light fell through the gaps between the boards.
Two swallows had a nest under the roof.

the library | in | to | in stage town calm
between two books; under a table; behind the tall shelf; on a chair; beside the lamp
Everybody whispered there.
There were books up to the ceiling.
A clock ticked slowly on the wall.

the school | at | to | in school stage town
under a desk; behind the blackboard; in the coat room; on the shelf; next to the piano
Drawings hung on all the walls.
The bell rang loudly.
Somebody laughed in the next room.

the bakery | in | to | in town warm
behind a sack of flour; under the counter; in a bread basket; beside the oven; on the window sill
It smelled of warm bread.
Rows of buns stood on the shelves.
The oven was hot and red inside.

the toy shop | in | to | in town
on the lowest shelf; behind a rocking horse; under the counter; among the balls; in the window
Toys looked down from every shelf.
A little train ran around the room.
A bell rang whenever the door opened.

the train station | at | to | in town
under a bench; behind a big suitcase; next to the clock; beside the ticket window; near the stairs
A long train came in with a loud puff.
People hurried with their bags.
A voice called out the names of the towns.

the museum | in | to | in stage town calm
behind a statue; under a bench; next to a glass box; near the big stairs; beside a stone lion
A huge bone stood in the middle of the hall.
The floor shone like water.
Old kings looked down from the pictures.

the lighthouse | in | to | in sea high
under the stairs; behind the big lamp; in a coil of rope; on the window sill; behind the blue door
The stairs went round and round.
The waves sang below.
From the top, one could see the ships.

the tree house | in | up to | in trees home high
under the blanket; in the wooden box; behind the ladder; on the little shelf; in a corner
The leaves brushed against the window.
The boards moved a little in the wind.
A rope ladder hung down to the ground.

the castle | in | to | in stage high
behind the throne; under the long table; in a suit of armor; on the stone steps; behind a red curtain
Flags waved on the towers.
The walls were as thick as a bed is long.
A fire burned in a huge fireplace.

the greenhouse | in | into | in warm farm
behind the tomatoes; under a bench; in an empty pot; beside the watering can; among the ferns
It was warm and damp inside.
Red tomatoes hung on the plants.
The glass roof shone in the sun.

the workshop | in | into | in home
under the bench; behind the toolbox; in a heap of wood; beside the saw; on the top shelf
It smelled of fresh wood.
Tools hung in a row on the wall.
The floor was covered with curls of wood.

the campground | at | to | out trees wild
under the picnic table; behind the tent; next to the fire pit; beneath a log; beside the stream
The tents stood in a circle.
Smoke from the fire went up into the trees.
A stream ran close by.

the swamp | at | to | out water wild live
on a log; under a fern; in the soft mud; behind the reeds; between two roots
The frogs sang all together.
Mist hung over the dark water.
The mud said squelch at every step.

the windmill | by | to | out live high farm
behind the door; next to the stone steps; in a sack; under the cart; beside the fence
The long arms turned against the sky.
The wood creaked like an old chair.
One could see it from every house.
"""
