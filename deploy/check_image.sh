#!/bin/sh
# Run the image as the chart does (a user that is not root, a read-only root, no capabilities), stream
# a completion from it and stop it.
#
#   deploy/check_image.sh IMAGE [OPTION_OF_DOCKER_RUN...]
#
# DOCKER names the program, docker by default. The options can lend a model, for example
# `-v ./model:/model:ro -e DIJIANG_MODEL=/model`.
set -eu
image=$1
shift
here=$(dirname "$0")
docker=${DOCKER:-docker}

container=$($docker run -d --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges \
    --memory 2g --no-healthcheck -e DIJIANG_API_KEYS=check -p 127.0.0.1::8000 "$@" "$image")
trap '$docker rm -f "$container" > /dev/null' EXIT
url=http://$($docker port "$container" 8000/tcp | head -1)

tries=120
until $docker exec "$container" python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz')" 2> /dev/null; do
    tries=$((tries - 1))
    if [ "$tries" = 0 ] || [ "$($docker inspect -f '{{.State.Running}}' "$container")" != true ]; then
        $docker logs "$container"
        exit 1
    fi
    sleep 1
done

user=$($docker exec "$container" id -u)
test "$user" != 0
if $docker exec "$container" touch /opt/file 2> /dev/null; then
    echo "The root can be written to."
    exit 1
fi
if $docker exec "$container" sh -c 'command -v cc || command -v g++'; then
    echo "There is a compiler in the image."
    exit 1
fi
DIJIANG_URL=$url DIJIANG_API_KEY=check python3 "$here/helm/dijiang/files/check_server.py"
$docker stop -t 40 "$container" > /dev/null
status=$($docker inspect -f '{{.State.ExitCode}}' "$container")
test "$status" = 0
echo "$image runs as user $user on a read-only root, streams, and stops with status $status"
