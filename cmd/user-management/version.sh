#!/bin/sh
# Prints version and commit of the program, for builds without git: what VERSION and COMMIT say or else what is found in
# the folder of git's own files that is named, from which HEAD, packed-refs and refs are enough. Without a tag of the
# commit its first 12 digits are the version.
set -eu
git=$1

head=$(cat "$git/HEAD" 2>/dev/null || true)
case $head in
"ref: "*)
    ref=${head#ref: }
    found=$(cat "$git/$ref" 2>/dev/null || awk -v ref="$ref" '$2 == ref { print $1 }' "$git/packed-refs" 2>/dev/null || true)
    ;;
*) found=$head ;;
esac
commit=${COMMIT:-${found:-unknown}}

# A tag of its own kind has another id, and packed-refs has the commit in the line after it. One that is not packed
# yet is not found.
tag=$(
    { awk -v commit="$commit" '
        $1 == commit && $2 ~ /^refs\/tags\// { print $2 }
        $1 == "^" commit { print tag }
        { tag = $2 }' "$git/packed-refs" 2>/dev/null || true
    cd "$git/refs/tags" 2>/dev/null && grep -rlx "$commit" . || true; } | sed 's|^refs/tags/||; s|^\./||' | sort | tail -n 1
)
short=$(printf %.12s "$found")
echo "${VERSION:-${tag:-${short:-dev}}} $commit"
