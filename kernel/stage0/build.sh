#!/bin/sh
# Assembles stage0 for each architecture. Only .text is taken, at its address,
# so that the output does not depend on the versions of as and ld: some as add a
# note section of their own. An extra word: the folder to put the output in.
set -eu
out=${1:-.}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo 'SECTIONS { .text 0x400000 : { *(.text) } /DISCARD/ : { *(*) } }' >"$work/flat.ld"
build() { # architecture, prefix of the tools
	"$2as" -o "$work/$1.o" "stage0_$1.S"
	"$2ld" -T "$work/flat.ld" -e _start -o "$work/$1" "$work/$1.o"
	# ld for arm64 refuses --oformat binary.
	"$2objcopy" -O binary -j .text "$work/$1" "$out/stage0_$1.elf"
	chmod 644 "$out/stage0_$1.elf"
}
case $(uname -m) in
x86_64) build amd64 ''; build arm64 aarch64-linux-gnu- ;;
aarch64) build arm64 ''; build amd64 x86_64-linux-gnu- ;;
*) echo "build.sh: no cross assembler known for $(uname -m)" >&2; exit 1 ;;
esac
