#!/bin/sh
# Installs nucpipe from /src into the image, for Dockerfile and nucpipe.def.
set -eu

apt-get update
apt-get install -y --no-install-recommends libgl1 libglib2.0-0 # OpenCV's
rm -rf /var/lib/apt/lists/*

cd /src
pip install --no-cache-dir -c constraints.txt ".[cluster,parquet,s3,serve]"

# What a first run makes is made here: networks converted for OpenVINO, and compiled loops.
python containers/tile.py /tmp/tile.png
nucpipe run /tmp/tile.png --mpp 0.25 --tissue none --out /tmp/results
rm -rf /tmp/tile.png /tmp/results

mkdir -p /opt/nucpipe
cp containers/environment.sh /opt/nucpipe/
chmod -R a+rwX "$NUCPIPE_CACHE" # whoever runs it
rm -rf /src
