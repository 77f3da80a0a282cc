#!/usr/bin/env bash
# Spoken digits: made with espeak-ng, learned from their samples, and drawn. About 25 minutes on one
# core of a laptop.
#
# examples/sounds.sh [FOLDER]
set -euo pipefail

examples=$(cd "$(dirname "$0")" && pwd)
if ! command -v espeak-ng > /dev/null; then
    echo "sounds.sh: espeak-ng, which speaks the words, is not installed" >&2
    exit 1
fi
mkdir -p "${1:-sounds}"
cd "${1:-sounds}"

# 480 files: every digit by 24 voices at two speeds, each at another pitch.
n=0
for word in zero one two three four five six seven eight nine; do
    mkdir -p "words/$word"
    for voice in en-us en-gb en-gb-scotland en-029; do
        for kind in m1 m3 m7 f1 f2 f4; do
            for speed in 150 180; do
                pitch=$((30 + n * 7 % 45))
                n=$((n + 1))
                espeak-ng -v "$voice+$kind" -p "$pitch" -s "$speed" \
                    -w "words/$word/$voice-$kind-$speed-$pitch.wav" "$word"
            done
        done
    done
done

# What is in them: rates, lengths, silent and clipped ones; and how they look.
diffuse info words -o words.png --overwrite

# 0.64 seconds at 8,000 Hz.
diffuse train words --rate 8000 --size 5120 --batch-size 16 --steps 1500 -o words.safetensors --overwrite

# drawn/grid.png shows waveforms and spectrograms.
diffuse sample words.safetensors -n 48 --steps 60 -o drawn/ --overwrite

# One of the words as it becomes noise, and the way back.
diffuse noise-demo words/six/en-us-m3-150-*.wav --model words.safetensors -o six.png --overwrite

# How well unseen words are predicted; and whether drawn ones have the spectrum of real ones.
diffuse eval words.safetensors words
python3 "$examples/sounds.py" words drawn real-and-drawn.png
