package checkpoint

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// entry is one member of a section's tar: a file of a tree.
type entry struct {
	path         string // "." of the tree itself, or without "./" and a trailing slash
	kind         byte
	socket       bool   // of kind kindFile
	link         string // what a link says; of a hard link, an earlier path
	mode         uint32 // permission bits
	uid, gid     uint32
	major, minor uint32
	atime, mtime unix.Timespec
	xattrs       []xattr
	size         int64 // of a regular file
	// spans are the parts of a file with holes that have data, in order; nil
	// where it is all data. A file of one hole has none of them, but is sparse.
	sparse bool
	spans  []span
}

type xattr struct{ name, value string }

type span struct{ off, size int64 }

// Bounds of one entry.
const (
	maxPax   = 64 << 20 // bytes of its pax header: Linux lets a file have as many attributes as it likes
	maxSpans = 1 << 20  // of a file; with more, holes are left to be zeros
	maxDepth = 1024     // directories below each other; each holds a descriptor
)

// The pax keys that are used: POSIX's, GNU tar's for holes, and star's for
// extended attributes.
const (
	keyXattr  = "SCHILY.xattr."
	keySparse = "GNU.sparse."
)

// isWhiteout tells an overlay's mark for a name that is deleted.
func (e *entry) isWhiteout() bool { return e.kind == kindChar && e.major == 0 && e.minor == 0 }

// fullPath is the path as tar has it.
func (e *entry) fullPath() string {
	switch {
	case e.path == ".":
		return "./"
	case e.kind == kindDir:
		return "./" + e.path + "/"
	}
	return "./" + e.path
}

// appendHead lays out the pax header and the header; size is what is stored.
func (e *entry) appendHead(b []byte, stored int64) []byte {
	u := ustar{name: e.fullPath(), mode: e.mode, uid: e.uid, gid: e.gid, size: stored, mtime: e.mtime.Sec, kind: e.kind, major: e.major, minor: e.minor}
	var pax []byte
	if len(u.name) > maxName || !isASCII(u.name) {
		pax = appendPax(pax, "path", u.name)
	}
	switch e.kind {
	case kindLink:
		u.link = e.link
	case kindHard:
		u.link = "./" + e.link
	}
	if len(u.link) > maxName || !isASCII(u.link) {
		pax = appendPax(pax, "linkpath", u.link)
	}
	for _, n := range []struct {
		key       string
		value, is int64
	}{{"size", stored, maxNumber}, {"uid", int64(e.uid), maxID}, {"gid", int64(e.gid), maxID}} {
		if n.value > n.is {
			pax = appendPax(pax, n.key, strconv.FormatInt(n.value, 10))
		}
	}
	if e.kind != kindHard { // it has none of its own
		pax = appendPax(pax, "mtime", formatTime(e.mtime))
		pax = appendPax(pax, "atime", formatTime(e.atime))
	}
	if e.socket {
		pax = appendPax(pax, "comment", "socket")
	}
	if e.sparse {
		pax = appendPax(pax, keySparse+"major", "1")
		pax = appendPax(pax, keySparse+"minor", "0")
		pax = appendPax(pax, keySparse+"name", u.name)
		pax = appendPax(pax, keySparse+"realsize", strconv.FormatInt(e.size, 10))
	}
	for _, x := range e.xattrs {
		pax = appendPax(pax, keyXattr+escapeXattr.Replace(x.name), x.value)
	}
	at := len(b)
	if len(pax) > 0 {
		ext := ustar{name: "./PaxHeaders", mode: 0o644, size: int64(len(pax)), kind: kindPax}
		b = append(b, zeros[:blockSize]...)
		ext.put(b[at:])
		b = append(b, pax...)
		b = append(b, zeros[:pad(int64(len(pax)))]...)
		at = len(b)
	}
	b = append(b, zeros[:blockSize]...)
	u.put(b[at:])
	return b
}

// As GNU tar's xattr_encode_keyword does, since 1.30.
var (
	escapeXattr   = strings.NewReplacer("%", "%25", "=", "%3D")
	unescapeXattr = strings.NewReplacer("%25", "%", "%3D", "=")
)

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }) < 0
}

// parseEntry reads a header and its pax header, and tells how many bytes are
// stored. What msh does not write, it refuses.
func parseEntry(head, pax []byte) (e *entry, stored int64, err error) {
	var u ustar
	if err := u.parse(head); err != nil {
		return nil, 0, hostile("%v", err)
	}
	e = &entry{kind: u.kind, mode: u.mode, uid: u.uid, gid: u.gid, major: u.major, minor: u.minor}
	path, link, stored := u.name, u.link, u.size
	e.mtime.Sec = u.mtime
	seen := map[string]bool{}
	version, name := "", ""
	number := func(text string, most int64) int64 {
		n, e := strconv.ParseInt(text, 10, 64)
		if (e != nil || n < 0 || n > most) && err == nil {
			err = fmt.Errorf("number %q", short(text))
		}
		return n
	}
	for len(pax) > 0 && err == nil {
		var key, value string
		if key, value, pax, err = cutPax(pax); err != nil {
			break
		}
		if seen[key] {
			err = fmt.Errorf("%q twice", short(key))
			break
		}
		seen[key] = true
		switch key {
		case "path":
			path = value
		case "linkpath":
			link = value
		case "size":
			stored = number(value, 1<<62)
		case "uid":
			e.uid = uint32(number(value, 1<<32-2))
		case "gid":
			e.gid = uint32(number(value, 1<<32-2))
		case "mtime":
			e.mtime, err = parseTime(value)
		case "atime":
			e.atime, err = parseTime(value)
		case "comment":
			if e.socket = value == "socket"; !e.socket {
				err = fmt.Errorf("comment %q", short(value))
			}
		case keySparse + "major", keySparse + "minor":
			version += key[len(keySparse):] + value
		case keySparse + "name":
			name = value
		case keySparse + "realsize":
			e.size = number(value, 1<<62)
			e.sparse = true
		default:
			attr, ok := strings.CutPrefix(key, keyXattr)
			if !ok || attr == "" || strings.IndexByte(attr, 0) >= 0 {
				err = fmt.Errorf("key %q", short(key))
			}
			e.xattrs = append(e.xattrs, xattr{unescapeXattr.Replace(attr), value})
		}
	}
	if err != nil {
		return nil, 0, hostile("%q: pax header: %v", short(path), err)
	}
	if e.sparse != (version == "major1minor0") || e.sparse && name != path {
		return nil, 0, hostile("%q: holes in a format that msh does not write", short(path))
	}
	if err := e.setPath(path, link); err != nil {
		return nil, 0, err
	}
	return e, stored, e.check(stored)
}

// setPath takes the paths as they stand in the tar apart.
func (e *entry) setPath(path, link string) error {
	rest, ok := strings.CutPrefix(path, "./")
	if e.kind == kindDir && ok && rest != "" {
		rest, ok = strings.CutSuffix(rest, "/")
	}
	if rest == "" && e.kind == kindDir {
		rest = "."
	} else if !ok || !isPath(rest) {
		return hostile("path %q", short(path))
	}
	e.path = rest
	switch e.kind {
	case kindLink:
		if e.link = link; link == "" || len(link) >= unix.PathMax || strings.IndexByte(link, 0) >= 0 {
			return hostile("%q: a link to %q", short(path), short(link))
		}
	case kindHard:
		if e.link, ok = strings.CutPrefix(link, "./"); !ok || !isPath(e.link) {
			return hostile("%q: a hard link to %q", short(path), short(link))
		}
	default:
		if link != "" {
			return hostile("%q: no link, but links to %q", short(path), short(link))
		}
	}
	return nil
}

// isPath tells a path that leads below: names, none of them special.
func isPath(path string) bool {
	return !slices.ContainsFunc(strings.Split(path, "/"), func(name string) bool {
		return name == "" || name == "." || name == ".." || len(name) > unix.NAME_MAX || strings.IndexByte(name, 0) >= 0
	})
}

// check tells of what no kind of file has.
func (e *entry) check(stored int64) error {
	switch {
	case e.kind < kindFile || e.kind > kindFifo:
		return hostile("%q: a member of kind %q", short(e.path), e.kind)
	case e.mode > 0o7777:
		return hostile("%q: mode %o", short(e.path), e.mode)
	case e.major > 1<<12-1 || e.minor > 1<<20-1:
		return hostile("%q: device %d:%d", short(e.path), e.major, e.minor)
	case e.kind != kindFile && (stored != 0 || e.sparse || e.socket):
		return hostile("%q: of kind %q, but has contents", short(e.path), e.kind)
	case e.socket && (stored != 0 || e.sparse):
		return hostile("%q: a socket, but has contents", short(e.path))
	case e.kind == kindHard && len(e.xattrs) > 0:
		return hostile("%q: a hard link, but has attributes", short(e.path))
	}
	if !e.sparse {
		e.size = stored
	}
	return nil
}

// formatTime writes seconds since 1970 with nine digits behind the point.
func formatTime(t unix.Timespec) string {
	if t.Sec < 0 && t.Nsec > 0 {
		return fmt.Sprintf("-%d.%09d", -(t.Sec + 1), 1e9-t.Nsec)
	}
	return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec)
}

// parseTime reads what formatTime wrote.
func parseTime(s string) (unix.Timespec, error) {
	whole, part, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 62)
	nsec, err2 := strconv.ParseUint(part, 10, 30)
	if err != nil || err2 != nil || len(part) != 9 {
		return unix.Timespec{}, fmt.Errorf("time %q", short(s))
	}
	t := unix.Timespec{Sec: sec, Nsec: int64(nsec)}
	if whole[0] == '-' && nsec > 0 {
		t = unix.Timespec{Sec: sec - 1, Nsec: 1e9 - int64(nsec)}
	}
	return t, nil
}
