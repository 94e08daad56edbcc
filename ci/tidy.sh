#!/usr/bin/env bash
# House rules that no compiler knows: file sizes, where unsafe and foreign locks may be, links and
# test names in the documentation.
source "$(dirname "$0")/lib.sh"

# What is longer is two ideas: split it. Tests at the end of a file do not count.
most_lines=700
# The only files with unsafe blocks. ARCHITECTURE.md says why each of them is needed.
may_be_unsafe='^(poller/src/sys/epoll|src/net/(outgoing|splice|stream)|src/signal)\.rs$'

bad=0
complain() {
    printf 'tidy: %s\n' "$*" >&2
    bad=1
}

# A file without its tests and comments, each line with its number in front.
code() {
    awk '/^#\[cfg\((all\()?test/ || /^mod tests/ { exit }
         { line = $0; sub(/(^|[ \t])\/\/.*/, "", line); print FNR ": " line }' "$1"
}

libraries=$(git ls-files -co --exclude-standard 'src/*.rs' 'linkbuffer/src/*.rs' 'poller/src/*.rs')

for file in $libraries; do
    [ -f "$file" ] || continue
    lines=$(awk '/^#\[cfg\((all\()?test/ || /^mod tests/ { exit } { n++ } END { print n + 0 }' "$file")
    if [ "$lines" -gt "$most_lines" ]; then
        complain "$file: $lines lines, the limit is $most_lines"
    fi
    if ! [[ $file =~ $may_be_unsafe ]]; then
        while IFS= read -r found; do
            complain "$file:$found: unsafe code is not allowed here"
        done < <(code "$file" | grep -E '\bunsafe (\{|fn|impl|trait)' || true)
    fi
    while IFS= read -r found; do
        complain "$file:$found: synchronise with what the sync module has"
    done < <(code "$file" |
        grep -E 'std::sync::(Mutex|RwLock|Condvar|mpsc|Barrier)|crossbeam_channel' || true)
    while IFS= read -r found; do
        complain "$file:$found: unfinished"
    done < <(code "$file" | grep -E '\b(todo|unimplemented)!\(|\b(TODO|FIXME|XXX)\b' || true)
done

# Every package has its licences.
for crate in linkbuffer poller; do
    for licence in LICENSE-*; do
        cmp -s "$licence" "$crate/$licence" || complain "$crate/$licence: not the same as $licence"
    done
done

# Every relative link leads somewhere.
while IFS= read -r file; do
    dir=$(dirname "$file")
    while IFS= read -r target; do
        [ -n "$target" ] || continue
        [ -e "$dir/$target" ] || complain "$file: nothing at $target"
    done < <(sed 's/`[^`]*`//g' "$file" | grep -oE '\]\([^)]+\)' |
        sed -E 's/^\]\(//; s/\)$//; s/#.*$//' | grep -vE '^(https?:|mailto:|crate::)' || true)
done < <(git ls-files -co --exclude-standard '*.md')

# Every test that a document names is there: `path/to/file.rs::test_name`.
while IFS= read -r name; do
    file=${name%%::*}
    test=${name##*::}
    if [ ! -f "$file" ]; then
        complain "docs name $name, but there is no $file"
    elif ! grep -qE "fn $test\b" "$file"; then
        complain "docs name $name, but $file has no such test"
    fi
done < <(git ls-files -co --exclude-standard '*.md' |
    xargs grep -ohE '`[a-z_/]+\.rs::[a-z0-9_:]+`' | tr -d '`' | sort -u || true)

# A test waits for a condition. What needs time to pass says so.
while IFS= read -r found; do
    complain "$found: wait for a condition, or say support::let_pass"
done < <(git ls-files -co --exclude-standard 'tests/*.rs' | grep -v '^tests/support/' |
    xargs grep -nE 'thread::sleep\((Duration::from_(secs|millis\(([3-9][0-9]|[0-9]{3,})\))|[^D])' || true)

if command -v shellcheck >/dev/null; then
    shellcheck -x -e SC1091 ci/*.sh .ci/run || bad=1
fi

if [ "$bad" -ne 0 ]; then
    exit 1
fi
echo "tidy: ok"
