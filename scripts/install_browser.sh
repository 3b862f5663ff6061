#!/bin/sh
# A headless Chromium for the tests that look at the report.
set -eu
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if ! command -v apt-get >/dev/null; then
    echo "no chromium on PATH and no apt-get to install it: install Chromium by hand" >&2
    exit 1
fi
sudo=""
if [ "$(id -u)" != 0 ]; then sudo="sudo"; fi
echo "installing chromium"
$sudo apt-get update -qq
$sudo apt-get install -y -qq chromium >/dev/null
