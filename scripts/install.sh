#!/usr/bin/env bash
# Links the command `sepal` into a folder of this user.
set -euo pipefail
folder=${1/#\~/$HOME}
program=$(dirname "$(readlink -f "$0")")/sepal
mkdir -p "$folder"
if [ -e "$folder/sepal" ] && [ ! -L "$folder/sepal" ]; then
    echo "install: $folder/sepal is there already and is no link; remove it, or name another folder" >&2
    exit 1
fi
ln -sfn "$program" "$folder/sepal"
echo "$folder/sepal runs $program"
case ":$PATH:" in
    *":$folder:"*) ;;
    *) echo "add it to your PATH: export PATH=\"$folder:\$PATH\"" ;;
esac
