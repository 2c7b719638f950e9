# Sourced where an Apptainer image starts. The cache inside cannot be written there; slides that are fetched, and loops
# for another processor than the image was made on, belong into a copy.
if [ -z "${NUCPIPE_CACHE:-}" ]; then
    NUCPIPE_CACHE=/opt/nucpipe/cache
    if ! [ -w "$NUCPIPE_CACHE" ]; then
        nucpipe_copy="${TMPDIR:-/tmp}/nucpipe-cache-$(id -u)"
        if ! [ -d "$nucpipe_copy" ]; then
            # Made beside and renamed, so that a process that starts meanwhile finds all of it or nothing.
            nucpipe_part=$(mktemp -d "$nucpipe_copy.XXXXXX") &&
                cp -R "$NUCPIPE_CACHE/." "$nucpipe_part/" && chmod -R u+w "$nucpipe_part" &&
                mv -T "$nucpipe_part" "$nucpipe_copy" 2>/dev/null || rm -rf "$nucpipe_part"
        fi
        if [ -d "$nucpipe_copy" ] && [ -O "$nucpipe_copy" ]; then # no folder that another user has put there
            NUCPIPE_CACHE=$nucpipe_copy
        fi
    fi
    export NUCPIPE_CACHE
fi
