package checkpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// layer is a snapshot whose section is the bytes given: a tar made by hand, its
// digests right.
func layer(t testing.TB, m *Manifest, section string, tar []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, Options{})
	check(t, err)
	check(t, w.Manifest(m))
	s, err := w.begin(context.Background(), "m", section)
	check(t, err)
	_, err = s.Write(tar)
	check(t, err)
	check(t, s.Close())
	_, err = w.Commit()
	check(t, err)
	return out.Bytes()
}

// tarOf lays out entries, whatever they are, and a tar's end.
func tarOf(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case *entry:
			b = p.appendHead(b, 0)
		case string: // contents of the file before
			b = append(b, p...)
			b = append(b, zeros[:pad(int64(len(p)))]...)
		case []byte:
			b = append(b, p...)
		}
	}
	return append(b, zeros[:endSize]...)
}

// member is a header as it never comes from an entry.
func member(u ustar, pax ...string) []byte {
	var text, b []byte
	for i := 0; i < len(pax); i += 2 {
		text = appendPax(text, pax[i], pax[i+1])
	}
	if text != nil {
		b = append(b, make([]byte, blockSize)...)
		(&ustar{name: "x", size: int64(len(text)), kind: kindPax}).put(b)
		b = append(b, text...)
		b = append(b, zeros[:pad(int64(len(text)))]...)
	}
	at := len(b)
	b = append(b, make([]byte, blockSize)...)
	if u.kind == 0 {
		u.kind = kindFile
	}
	u.put(b[at:])
	return b
}

func sized(name, text string) []byte {
	return append(member(ustar{name: name, size: int64(len(text)), mode: 0o644}), tarOf(text)[:int64(len(text))+pad(int64(len(text)))]...)
}

var rootDir = &entry{path: ".", kind: kindDir, mode: 0o755}

func directory(path string) *entry { return &entry{path: path, kind: kindDir, mode: 0o755} }
func symlink(path, to string) *entry {
	return &entry{path: path, kind: kindLink, link: to, mode: 0o777}
}
func hardlink(path, to string) *entry {
	return &entry{path: path, kind: kindHard, link: to, mode: 0o644}
}

func TestHostileTrees(t *testing.T) {
	outside := t.TempDir()
	check(t, os.WriteFile(outside+"/secret", []byte("secret"), 0o600))
	before := walk(t, outside)
	up := "../../../../../../../../../.." + outside
	var deep []any
	deep = append(deep, rootDir)
	for i := range 1200 {
		deep = append(deep, directory(strings.TrimPrefix(strings.Repeat("/d", i+1), "/")))
	}
	holes := func(size, stored int64, table string) []byte {
		return append(member(ustar{name: "./f", size: stored}, "GNU.sparse.major", "1", "GNU.sparse.minor", "0",
			"GNU.sparse.name", "./f", "GNU.sparse.realsize", "1000000"), tarOf(table)[:int64(len(table))+pad(int64(len(table)))]...)
	}
	for name, tar := range map[string][]byte{
		"up":                       tarOf(rootDir, sized("./../x", "x")),
		"up at the end":            tarOf(rootDir, directory("a"), sized("./a/..", "x")),
		"up in a pax path":         tarOf(rootDir, member(ustar{name: "./f"}, "path", "./../x")),
		"a directory up":           tarOf(rootDir, directory("..")),
		"absolute":                 tarOf(rootDir, sized(outside+"/x", "x")),
		"absolute in a pax path":   tarOf(rootDir, member(ustar{name: "./f"}, "path", outside+"/x")),
		"not below .":              tarOf(rootDir, sized("x", "x")),
		"a slash too many":         tarOf(rootDir, sized(".//x", "x")),
		"no name":                  tarOf(rootDir, sized("./", "x")),
		"a dot":                    tarOf(rootDir, directory("a"), sized("./a/.", "x")),
		"NUL":                      tarOf(rootDir, member(ustar{name: "./f"}, "path", "./a\x00b")),
		"a long name":              tarOf(rootDir, member(ustar{name: "./f"}, "path", "./"+strings.Repeat("x", 256))),
		"through a link":           tarOf(rootDir, symlink("l", outside), sized("./l/x", "x")),
		"through a link up":        tarOf(rootDir, symlink("l", up), sized("./l/x", "x")),
		"a directory over a link":  tarOf(rootDir, symlink("l", outside), directory("l"), sized("./l/x", "x")),
		"a file over a link":       tarOf(rootDir, symlink("l", outside+"/secret"), sized("./l", "x")),
		"a fifo over a link":       tarOf(rootDir, symlink("l", outside+"/secret"), &entry{path: "l", kind: kindFifo}),
		"a hard link over a link":  tarOf(rootDir, sized("./f", "x"), symlink("l", outside+"/secret"), hardlink("l", "f")),
		"hard link up":             tarOf(rootDir, hardlink("h", "../../../../"+outside+"/secret")),
		"hard link, absolute":      tarOf(rootDir, member(ustar{name: "./h", kind: kindHard, link: outside + "/secret"})),
		"hard link through a link": tarOf(rootDir, symlink("l", outside), hardlink("h", "l/secret")),
		"hard link to a directory": tarOf(rootDir, directory("d"), hardlink("h", "d")),
		"hard link to nothing":     tarOf(rootDir, hardlink("h", "later"), sized("./later", "x")),
		"hard link to itself":      tarOf(rootDir, hardlink("h", "h")),
		"hard link, no name":       tarOf(rootDir, member(ustar{name: "./h", kind: kindHard, link: "./"})),
		"a device":                 tarOf(rootDir, &entry{path: "d", kind: kindChar, major: 1, minor: 3}),
		"a disk":                   tarOf(rootDir, &entry{path: "d", kind: kindBlock, major: 8}),
		"a block whiteout":         tarOf(rootDir, &entry{path: "d", kind: kindBlock}),
		"a file twice":             tarOf(rootDir, sized("./f", "1"), sized("./f", "2")),
		"a directory twice":        tarOf(rootDir, directory("d"), directory("d")),
		"a directory over a file":  tarOf(rootDir, sized("./d", "1"), directory("d")),
		"the root twice":           tarOf(rootDir, rootDir),
		"the root a link":          tarOf(member(ustar{name: "./", kind: kindLink, link: outside})),
		"no root":                  tarOf(sized("./f", "1")),
		"nothing":                  tarOf(),
		"no directory":             tarOf(rootDir, sized("./d/f", "1")),
		"back in a directory":      tarOf(rootDir, directory("a"), directory("b"), sized("./a/f", "1")),
		"deep":                     tarOf(deep...),
		"a kind of GNU tar's":      tarOf(rootDir, member(ustar{name: "././@LongLink", kind: 'L', size: 3}), "abc"),
		"a global header":          tarOf(rootDir, member(ustar{name: "x", kind: 'g'})),
		"a kind of its own":        tarOf(rootDir, member(ustar{name: "./f", kind: '7'})),
		"two pax headers":          tarOf(rootDir, member(ustar{name: "x", kind: kindPax}, "path", "./f"), member(ustar{name: "./f"})),
		"a pax key twice":          tarOf(rootDir, member(ustar{name: "./f"}, "path", "./a", "path", "./b")),
		"an unknown pax key":       tarOf(rootDir, member(ustar{name: "./f"}, "GNU.volume.label", "x")),
		"a comment":                tarOf(rootDir, member(ustar{name: "./f"}, "comment", "x")),
		"an attribute, no name":    tarOf(rootDir, member(ustar{name: "./f"}, "SCHILY.xattr.", "x")),
		"a bad time":               tarOf(rootDir, member(ustar{name: "./f"}, "mtime", "1.5")),
		"a negative size":          tarOf(rootDir, member(ustar{name: "./f"}, "size", "-1")),
		"a large owner":            tarOf(rootDir, member(ustar{name: "./f"}, "uid", "4294967295")),
		"a broken pax header":      tarOf(rootDir, member(ustar{name: "x", kind: kindPax, size: 20}), "99999 path=./f\n", member(ustar{name: "./f"})),
		"more than there is":       tarOf(rootDir, member(ustar{name: "./f", size: 1 << 32})),
		"far more than there is":   tarOf(rootDir, member(ustar{name: "./f"}, "size", "4611686018427387904")),
		"a pax header of a TiB":    tarOf(rootDir, member(ustar{name: "x", kind: kindPax, size: 1 << 32})),
		"a directory with size":    tarOf(rootDir, member(ustar{name: "./d/", kind: kindDir, size: 5}), "hello"),
		"a socket with contents":   tarOf(rootDir, member(ustar{name: "./s", size: 5}, "comment", "socket"), "hello"),
		"a link to nothing":        tarOf(rootDir, member(ustar{name: "./l", kind: kindLink})),
		"a file that links":        tarOf(rootDir, member(ustar{name: "./f", link: "./g"})),
		"a hard link with owner's": tarOf(rootDir, sized("./f", "x"), member(ustar{name: "./h", kind: kindHard, link: "./f"}, "SCHILY.xattr.user.x", "y")),
		"a large device":           tarOf(rootDir, member(ustar{name: "./d", kind: kindChar, major: 4096})),
		"in the padding":           tarOf(rootDir, member(ustar{name: "./f", size: 1}), zeros[:1], pages(511)),
		"behind the end":           append(tarOf(rootDir), zeros[:blockSize]...),
		"half an end":              tarOf(rootDir)[:2*blockSize],
		"one zero block":           append(tarOf(rootDir)[:2*blockSize+blockSize/2], sized("./f", "")...),
		"no end":                   tarOf(rootDir, sized("./f", "x"))[:4*blockSize],
		"cut in a header":          tarOf(rootDir, sized("./f", "x"))[:2*blockSize+100],
		"no tar":                   pages(10_000),
		"holes: no number":         tarOf(rootDir, holes(10, 512, "x\n")),
		"holes: too many":          tarOf(rootDir, holes(10, 512, "99999999999\n")),
		"holes: a long number":     tarOf(rootDir, holes(10, 512, "1\n00000000000000000000000001\n")),
		"holes: back":              tarOf(rootDir, holes(10, 1024, "2\n100\n100\n150\n100\n")),
		"holes: beyond":            tarOf(rootDir, holes(10, 1024, "1\n1000000\n1\n")),
		"holes: overflow":          tarOf(rootDir, holes(10, 1024, "1\n1\n4611686018427387903\n")),
		"holes: less than stored":  tarOf(rootDir, holes(10, 1024, "1\n0\n100\n")),
		"holes: more than stored":  tarOf(rootDir, holes(10, 512, "1\n0\n100\n")),
		"holes: another format":    tarOf(rootDir, member(ustar{name: "./f"}, "GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.name", "./f", "GNU.sparse.realsize", "9")),
		"holes: another name":      tarOf(rootDir, member(ustar{name: "./f"}, "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "./../f", "GNU.sparse.realsize", "9")),
	} {
		t.Run(name, func(t *testing.T) {
			dst := t.TempDir()
			err := readAll(bytes.NewReader(layer(t, manifest("m"), SectionUpper, tar)), dst, UnpackOptions{})
			if !errors.Is(err, ErrHostile) {
				t.Errorf("got %v", err)
			}
			if n := entries(t, dst+"/m/upper"); n != 0 {
				t.Errorf("%d files are left", n)
			}
		})
	}
	if diff := cmp.Diff(before, walk(t, outside)); diff != "" {
		t.Errorf("outside (-before +after)\n%s", diff)
	}
}

// TestLinksStay: where a link leads is the machine's own affair, so it is kept as
// it is; it is only never walked through.
func TestLinksStay(t *testing.T) {
	dst := t.TempDir()
	tar := tarOf(rootDir, symlink("a", "/etc/passwd"), hardlink("b", "a"), directory("c"), symlink("c/d", "../../.."))
	check(t, readAll(bytes.NewReader(layer(t, manifest("m"), SectionUpper, tar)), dst, UnpackOptions{}))
	for name, want := range map[string]string{"a": "/etc/passwd", "b": "/etc/passwd", "c/d": "../../.."} {
		if got, _ := os.Readlink(dst + "/m/upper/" + name); got != want {
			t.Errorf("%s leads to %q", name, got)
		}
	}
}

func TestHostileImages(t *testing.T) {
	for name, tar := range map[string][]byte{
		"a link":             tarOf(rootDir, symlink("pages-1.img", "/etc/shadow")),
		"parent outside":     tarOf(rootDir, symlink("parent", "../x")),
		"parent, absolute":   tarOf(rootDir, symlink("parent", "/")),
		"parent of parent":   tarOf(rootDir, directory("a"), symlink("a/parent", "../../b")),
		"a hard link":        tarOf(rootDir, sized("./f", "x"), hardlink("g", "f")),
		"a device":           tarOf(rootDir, &entry{path: "d", kind: kindChar}),
		"a fifo":             tarOf(rootDir, &entry{path: "d", kind: kindFifo}),
		"a socket":           tarOf(rootDir, &entry{path: "d", kind: kindFile, socket: true}),
		"through its parent": tarOf(rootDir, directory("a"), directory("b"), symlink("b/parent", "../a"), sized("./b/parent/f", "x")),
	} {
		dst := t.TempDir()
		err := readAll(bytes.NewReader(layer(t, manifest("m"), SectionMemory, tar)), dst, UnpackOptions{Devices: true})
		if !errors.Is(err, ErrHostile) {
			t.Errorf("%s: got %v", name, err)
		}
		if n := entries(t, dst+"/m/memory"); n != 0 {
			t.Errorf("%s: %d files are left", name, n)
		}
	}
}

func TestBounds(t *testing.T) {
	tar := tarOf(rootDir, sized("./a", strings.Repeat("x", 1000)), directory("d"), sized("./d/b", strings.Repeat("y", 1000)))
	for _, c := range []struct {
		section string
		bounds  Bounds
		options UnpackOptions
		ok      bool
	}{
		{SectionUpper, Bounds{}, UnpackOptions{}, true},
		{SectionUpper, Bounds{2000, 4, 1}, UnpackOptions{}, true},
		{SectionUpper, Bounds{1999, 0, 0}, UnpackOptions{}, false},
		{SectionUpper, Bounds{0, 3, 0}, UnpackOptions{}, false},
		{SectionUpper, Bounds{5000, 0, 0}, UnpackOptions{MaxBytes: 1999}, false},
		{SectionUpper, Bounds{0, 5, 0}, UnpackOptions{MaxFiles: 3}, false},
		{SectionUpper, Bounds{5000, 5, 0}, UnpackOptions{MaxBytes: 2000, MaxFiles: 4}, true},
		{SectionMemory, Bounds{1, 1, 2000}, UnpackOptions{}, true},
		{SectionMemory, Bounds{0, 0, 1999}, UnpackOptions{}, false},
	} {
		m := manifest("m")
		m.Machines[0].Bounds = &c.bounds
		dst := t.TempDir()
		err := readAll(bytes.NewReader(layer(t, m, c.section, tar)), dst, c.options)
		if c.ok && err != nil || !c.ok && !errors.Is(err, ErrHostile) {
			t.Errorf("%+v: got %v", c, err)
		}
		if n := entries(t, filepath.Join(dst, "m", c.section)); !c.ok && n != 0 {
			t.Errorf("%+v: %d files are left", c, n)
		}
	}
}

// TestUnpackWantsAnEmptyDirectory keeps what is there.
func TestUnpackWantsAnEmptyDirectory(t *testing.T) {
	dst := t.TempDir()
	check(t, os.MkdirAll(dst+"/m/upper/keep", 0o755))
	err := readAll(bytes.NewReader(layer(t, manifest("m"), SectionUpper, tarOf(rootDir))), dst, UnpackOptions{})
	if err == nil || !strings.Contains(err.Error(), `"keep"`) || entries(t, dst+"/m/upper") != 1 {
		t.Errorf("got %v", err)
	}
}

// archive lays out records and their data, with the list and the end.
func archive(records ...[]byte) []byte {
	var b, sums []byte
	for _, r := range records {
		b = append(b, r...)
		rec, err := parseHead(r)
		if err != nil {
			panic(err)
		}
		sums = fmt.Appendf(sums, "%x  %s\n", rec.sum, rec.name)
	}
	b = append(b, rawRecord(&record{name: sumsName, raw: int64(len(sums))}, sums)...)
	return append(b, zeros[:endSize]...)
}

// rawRecord is a record of the data given, with digest and size set right.
func rawRecord(r *record, data []byte) []byte {
	r.size, r.sum = int64(len(data)), sha256.Sum256(data)
	return append(append(r.head(), data...), zeros[:pad(r.size)]...)
}

func manifestRecord(t *testing.T, m any) []byte {
	text, err := json.Marshal(m)
	check(t, err)
	return rawRecord(&record{name: manifestName, raw: int64(len(text))}, text)
}

func chunkRecord(name string, raw []byte, claim int64, last bool) []byte {
	return rawRecord(&record{name: name, raw: claim, last: last}, appendStored(nil, raw))
}

func TestHostileArchives(t *testing.T) {
	m := manifest("m")
	m.Format = Format
	good := manifestRecord(t, m)
	one := chunkRecord("m/log/00000000.zst", []byte("x"), 1, true)
	first := chunkRecord("m/log/00000000.zst", []byte("x"), 1, false)
	check(t, drain(bytes.NewReader(archive(good, one))))
	check(t, drain(bytes.NewReader(archive(good, first, chunkRecord("m/log/00000001.zst", nil, 0, true)))))
	changed := func(change func(*Manifest)) []byte {
		m := manifest("m")
		m.Format = Format
		change(m)
		return manifestRecord(t, m)
	}
	bomb := appendStored(nil, make([]byte, maxRaw))
	for name, c := range map[string]struct {
		file []byte
		want error
	}{
		"a manifest twice":            {archive(good, good), ErrHostile},
		"no manifest":                 {archive(one), ErrCorrupt},
		"a machine not in it":         {archive(good, chunkRecord("n/log/00000000.zst", nil, 0, true)), ErrHostile},
		"a path as machine":           {archive(good, chunkRecord("../log/00000000.zst", nil, 0, true)), ErrHostile},
		"an absolute path":            {archive(good, chunkRecord("/etc/passwd", nil, 0, true)), ErrHostile},
		"a section that is no name":   {archive(good, chunkRecord("m/../00000000.zst", nil, 0, true)), ErrHostile},
		"a section twice":             {archive(good, one, one), ErrHostile},
		"a section that does not end": {archive(good, first), ErrCorrupt},
		"a chunk missing":             {archive(good, first, chunkRecord("m/log/00000002.zst", []byte("x"), 1, true)), ErrCorrupt},
		"the first chunk missing":     {archive(good, chunkRecord("m/log/00000001.zst", []byte("x"), 1, true)), ErrCorrupt},
		"a section within another":    {archive(good, first, chunkRecord("m/upper/00000000.zst", nil, 0, true)), ErrCorrupt},
		"a chunk under another name":  {archive(good, chunkRecord("m/log/0.zst", []byte("x"), 1, true)), ErrCorrupt},
		"empty chunks":                {archive(good, chunkRecord("m/log/00000000.zst", nil, 0, false), chunkRecord("m/log/00000001.zst", nil, 0, true)), ErrHostile},
		"claims less than it has":     {archive(good, chunkRecord("m/log/00000000.zst", make([]byte, 1000), 999, true)), ErrHostile},
		"claims more than it has":     {archive(good, chunkRecord("m/log/00000000.zst", make([]byte, 1000), 1001, true)), ErrHostile},
		"claims far too much":         {archive(good, chunkRecord("m/log/00000000.zst", make([]byte, maxRaw+1), maxRaw+1, true)), ErrHostile},
		"claims a negative size":      {archive(good, rawRecord(&record{name: "m/log/00000000.zst", raw: -1, last: true}, nil)), ErrHostile},
		"a bomb":                      {archive(good, rawRecord(&record{name: "m/log/00000000.zst", raw: 10, last: true}, bomb)), ErrHostile},
		"a bomb of many frames":       {archive(good, rawRecord(&record{name: "m/log/00000000.zst", raw: 10, last: true}, bytes.Repeat(bomb, 100))), ErrHostile},
		"no zstd":                     {archive(good, rawRecord(&record{name: "m/log/00000000.zst", raw: 10, last: true}, pages(100))), ErrHostile},
		"a stored chunk too long":     {archive(good, rawRecord(&record{name: "m/log/00000000.zst", raw: 10, last: true}, make([]byte, maxStored+1))), ErrHostile},
		"a manifest that is no JSON":  {archive(rawRecord(&record{name: manifestName, raw: 1}, []byte("{"))), ErrHostile},
		"a manifest of format 0":      {archive(manifestRecord(t, manifest("m"))), ErrHostile},
		"a manifest of nothing":       {archive(changed(func(m *Manifest) { m.Machines = nil })), ErrHostile},
		"a path in the manifest":      {archive(changed(func(m *Manifest) { m.Machines[0].Name = ".." })), ErrHostile},
		"a machine twice":             {archive(changed(func(m *Manifest) { m.Machines = append(m.Machines, m.Machines[0]) })), ErrHostile},
		"a mode unknown":              {archive(changed(func(m *Manifest) { m.Machines[0].Mode = "x" })), ErrHostile},
		"bounds below 0":              {archive(changed(func(m *Manifest) { m.Machines[0].Bounds = &Bounds{UpperBytes: -1} })), ErrHostile},
		"the next format":             {archive(changed(func(m *Manifest) { m.Format++ })), ErrNewer},
		"another tar":                 {append(tarOf(rootDir, sized("./f", "x")), make([]byte, 9000)...), ErrCorrupt},
		"a list that is not its own":  {append(archive(good)[:len(good)], archive(good, one)[len(good)+len(one):]...), ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s.msh")
			check(t, os.WriteFile(path, c.file, 0o600))
			if err := drain(bytes.NewReader(c.file)); !errors.Is(err, c.want) {
				t.Errorf("read: got %v, want %v", err, c.want)
			}
			if _, err := Verify(context.Background(), path); !errors.Is(err, c.want) {
				t.Errorf("verified: got %v, want %v", err, c.want)
			}
		})
	}
}

func TestNewerSaysWhich(t *testing.T) {
	_, err := NewReader(bytes.NewReader(archive(manifestRecord(t, map[string]any{"format": 7, "msh": "9.1", "machines": "what it then is"}))))
	var newer *NewerError
	if !errors.As(err, &newer) || newer.Format != 7 || !strings.Contains(newer.Hint(), "9.1") {
		t.Errorf("got %v", err)
	}
	if want := "the snapshot was made by a newer msh: it has format 7, by msh 9.1; this one reads up to format 2"; err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// TestUnknownFieldsPass: what a later msh adds to the same format does no harm.
func TestUnknownFieldsPass(t *testing.T) {
	r, err := NewReader(bytes.NewReader(archive(manifestRecord(t, map[string]any{"format": 1, "new": 1,
		"machines": []any{map[string]any{"name": "m", "mode": "files", "new": 2}}}))))
	check(t, err)
	if _, err := r.Next(); err != io.EOF {
		t.Error(err)
	}
}

// FuzzReader feeds the reader anything; whatever comes, it ends, and its own
// directory is all it touches.
func FuzzReader(f *testing.F) {
	f.Add(small(f))
	f.Add(layer(f, manifest("m"), "log", []byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		check(t, os.Mkdir(dir+"/in", 0o700))
		err := readAll(bytes.NewReader(b), dir+"/in", UnpackOptions{MaxBytes: 1 << 20, MaxFiles: 100})
		if n, _ := os.ReadDir(dir); len(n) != 1 {
			t.Errorf("it left %v", n)
		}
		if err == nil { // then it is one that Writer could have made, to the bit
			again, _ := NewReader(bytes.NewReader(b))
			if again.Manifest().check() != nil {
				t.Error("a manifest that is wrong was read")
			}
		}
	})
}

// FuzzUnpack feeds it trees with right digests.
func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(rootDir, sized("./f", "x"), directory("d"), symlink("d/l", "/"), hardlink("d/h", "f"), &entry{path: "w", kind: kindChar}), false)
	f.Add(tarOf(rootDir, sized("./pages-1.img", "x")), true)
	f.Add(tarOf(rootDir, member(ustar{name: "./f", size: 512}, "GNU.sparse.major", "1", "GNU.sparse.minor", "0",
		"GNU.sparse.name", "./f", "GNU.sparse.realsize", "100", "SCHILY.xattr.user.x", "y", "mtime", "1.000000000"), "1\n100\n0\n"), false)
	f.Fuzz(func(t *testing.T, tar []byte, images bool) {
		// A sum that is wrong would end it at once.
		for at := 0; at+blockSize <= len(tar); at += blockSize {
			var u ustar
			if b := tar[at : at+blockSize]; string(b[257:262]) == "ustar" {
				sum := 8 * int(' ')
				for i, c := range b {
					if i < 148 || i >= 156 {
						sum += int(c)
					}
				}
				if fixed := append(fmt.Appendf(bytes.Clone(b[:148]), "%06o\x00 ", sum), b[156:]...); u.parse(fixed) == nil {
					tar = slices.Concat(tar[:at], fixed, tar[at+blockSize:])
				}
			}
		}
		dir := t.TempDir()
		section := SectionUpper
		if images {
			section = SectionMemory
		}
		check(t, os.Mkdir(dir+"/in", 0o700))
		err := readAll(bytes.NewReader(layer(t, manifest("m"), section, tar)), dir+"/in", UnpackOptions{MaxBytes: 1 << 20, MaxFiles: 100})
		if n, _ := os.ReadDir(dir); len(n) != 1 {
			t.Errorf("it left %v", n)
		}
		if err != nil {
			if n := entries(t, dir+"/in/m/"+section); n != 0 {
				t.Errorf("%v, but %d files are left", err, n)
			}
			return
		}
		// What was unpacked can be packed, and is the same again.
		fd, err := unix.Open(dir+"/in/m/"+section, unix.O_RDONLY, 0)
		check(t, err)
		defer unix.Close(fd)
		w, err := NewWriter(io.Discard, Options{})
		check(t, err)
		check(t, w.Manifest(manifest("m")))
		if images {
			check(t, w.Images(context.Background(), "m", section, fd))
		} else {
			check(t, w.Upper(context.Background(), "m", fd))
		}
	})
}
