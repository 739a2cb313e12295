#!/bin/bash
# Makes models/stories.gguf: writes the corpus, learns the tokenizer, trains, quantises, and checks
# the result. models/README.md has what it made, and how long it took.
#   models/train.sh [FOLDER]      the corpus and the checkpoints go there (default build/stories)
# Run again after an interruption it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-build/stories}
mkdir -p "$dir"

script/build shoal >&2
[ -f "$dir/train.txt" ] ||
    python3 models/stories/generate.py --megabytes 80 --seed 1 -o "$dir/train.txt"
[ -f "$dir/val.txt" ] ||
    python3 models/stories/generate.py --megabytes 2 --seed 2 --held-out -o "$dir/val.txt"
if [ ! -f "$dir/data/val.bin" ]; then # validation is on stories whose openings are not in training
    build/shoal prepare "$dir/train.txt" -o "$dir/data" --tokenizer bpe --vocab-size 2048 --val 0
    build/shoal prepare "$dir/val.txt" -o "$dir/held" --tokenizer "$dir/data/tokenizer.gguf" --val 0
    mv "$dir/held/train.bin" "$dir/data/val.bin"
fi

start=scratch
[ -f "$dir/ckpt/last.gguf" ] && start=resume
build/shoal train --init "$start" --ckpt "$dir/ckpt" --dataset "$dir/data" --family llama \
    --layers 4 --width 256 --heads 8 --kv-heads 4 --ff 704 --context 256 --tied \
    --batch-size 8 --max-iters 16000 --lr 2e-3 --min-lr 1e-4 --warmup 200 \
    --weight-decay 0.1 --beta2 0.98 --ckpt-interval 1000 --eval-iters 40 --log-interval 100 --seed 1

build/shoal quantize "$dir/ckpt/best.gguf" models/stories.gguf q8_0

# What it writes, for tests/e2e/golden.py: the same on every machine and topology.
prompt="One sunny morning, Lucy the rabbit"
build/shoal run -m models/stories.gguf -p "$prompt" -n 80 --temp 0 --arith int8 -o json |
    python3 -c 'import json, sys
line = json.loads(sys.stdin.read())
keep = {"prompt": sys.argv[1], "n": 80, "tokens": line["tokens"], "text": line["text"]}
print(json.dumps(keep))' "$prompt" > tests/golden/stories.json

python3 models/stories/generate.py --openings 10 > "$dir/openings.txt"
python3 tests/tools/check_stories.py --program build/shoal --corpus "$dir/train.txt" \
    --openings "$dir/openings.txt" models/stories.gguf
