#!/usr/bin/env bash
# The commands on the example data, as a script in CI would run them: two minutes.
set -euo pipefail

examples=$(cd "$(dirname "$0")" && pwd)
data=$examples/fashion-mnist.zip
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# What is in the images, before training on them.
diffuse info "$data" -o sheet.png --json --quiet > info.json
python3 -c '
import json
found = json.load(open("info.json"))
assert found["usable"] == 2000 and not found["skipped"] and not found["duplicates"]["groups"]
'

# Train a little; what it prints on stdout is the path of the model.
model=$(diffuse train "$data" --steps 40 --batch-size 16 --quiet)
test -s "$model"

diffuse info "$model" --quiet | grep -q "^step  *40$"

# Go on with the same run: a larger --steps extends it.
diffuse train "$data" --steps 60 --resume --quiet

# Eight images from the model file alone.
diffuse sample "$model" -n 8 -o out/ --steps 10 --quiet
test "$(find out -name '0*.png' | wc -l)" -eq 8

# Classes are the names of the folders; each image is drawn of a class that is named.
diffuse train "$data" --steps 20 --batch-size 16 --classes --variance learned -o classes.safetensors --quiet
diffuse sample classes.safetensors -n 4 --class bag --class sneaker --guidance 2 -o classes/ --steps 5 --quiet
grep -q '"sneaker"' classes/manifest.json

# Two runs side by side: the settings that differ, and their losses.
diffuse compare "$model" classes.safetensors --quiet | grep -q "^classes  *False  *True$"

# Numbers as JSON, for a dashboard or a threshold.
diffuse eval "$model" "$data" -n 32 --steps 10 --timesteps 10 --json --report eval.html --quiet > eval.json
grep -q '<h1>' eval.html
python3 -c '
import json
found = json.load(open("eval.json"))
print("bits per dimension:", round(found["bits_per_dim"], 3), "  KID:", round(found["kid"], 3))
assert 0 < found["bits_per_dim"] < 50
'

# The cheapest good setting, written into a copy of the model, which samples with it from then on.
# Learning times for few steps would take longer than all the rest.
diffuse tune "$model" "$data" -n 16 --samplers ddim,unipc --steps 3,6 \
    -o tuned.safetensors --quiet > tuned.txt
diffuse info tuned.safetensors --quiet | grep -q "^recommended "
diffuse sample tuned.safetensors -n 2 -o tuned/ --quiet

# Pairs: images from their edges; and half of an image drawn anew by a model of whole ones.
rm out/grid.png
python3 "$examples/edges.py" out edges
diffuse train out --given edges --preset tiny --steps 4 -o pairs.safetensors --quiet
diffuse sample pairs.safetensors --given edges/00000.png -n 2 -o drawn/ --steps 2 --quiet
diffuse restore "$model" out/00000.png --degradation mask:half --degrade -n 2 --steps 4 -o whole/ --quiet
test -s whole/grid.png

# The forward process under every schedule, as a picture.
diffuse noise-demo out/00000.png -o demo.png --quiet
test -s demo.png

# Chirps, where the extra [audio] is installed: drawn as WAV, and a page that plays one as it becomes noise.
if python3 -c 'import soundfile' 2> /dev/null; then
    python3 -c '
import wave, numpy as np
from pathlib import Path
Path("chirps").mkdir()
times = np.arange(1024) / 4000
for k in range(24):
    chirp = 8000 * np.sin(2 * np.pi * (200 + 20 * k + 900 * times) * times)
    with wave.open(f"chirps/{k:02d}.wav", "wb") as file:
        file.setparams((1, 2, 4000, 0, "NONE", ""))
        file.writeframes(chirp.astype("<i2").tobytes())
'
    diffuse train chirps --steps 4 --width 16 --batch-size 4 -o chirps.safetensors --quiet
    diffuse sample chirps.safetensors -n 2 --steps 4 -o played/ --quiet
    diffuse noise-demo chirps/00.wav --schedule cosine -o chirp.png --quiet
    python3 -c '
import wave
assert wave.open("played/00001.wav").getparams()[:4] == (1, 2, 4000, 1024)
'
    test -s chirp.png
fi

# The core as a library, with no files of the command line.
OMP_NUM_THREADS=1 python3 "$examples/library.py"
test -s library.png

# Bad input is one line and an exit code.
code=0
diffuse sample missing.safetensors 2> error.txt || code=$?
test "$code" -eq 4
test "$(wc -l < error.txt)" -eq 1

echo "examples: ok"
