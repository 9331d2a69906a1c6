package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// record is a member of the file.
type record struct {
	name string
	size int64             // of the data as stored
	raw  int64             // of the data once unpacked
	sum  [sha256.Size]byte // of the data as stored
	last bool              // ends its section
}

// The members that are not chunks.
const (
	manifestName = "manifest.json"
	sumsName     = "SHA256SUMS"
)

// headSize is what stands before a member's data; endSize, at the file's end.
const (
	headSize = 3 * blockSize
	endSize  = 2 * blockSize
)

// Bounds of one chunk, in bytes.
const (
	chunkSize = 1 << 20         // that is written, before it is compressed
	maxRaw    = 4 << 20         // that is read
	maxStored = maxRaw + 64<<10 // the same, where compression made it longer
)

// head lays out the three blocks: everything is a constant but the record's own.
func (r *record) head() []byte {
	comment := "sha256:" + hex.EncodeToString(r.sum[:]) + " raw:" + strconv.FormatInt(r.raw, 10)
	if r.last {
		comment += " last"
	}
	b := make([]byte, headSize)
	text := appendPax(nil, "comment", comment)
	ext := ustar{name: "PaxHeaders/" + path.Base(r.name), mode: 0o600, size: int64(len(text)), kind: kindPax}
	ext.put(b)
	copy(b[blockSize:], text)
	member := ustar{name: r.name, mode: 0o600, size: r.size, kind: kindFile}
	member.put(b[2*blockSize:])
	return b
}

// parseHead reads what head wrote; nothing else passes.
func parseHead(b []byte) (*record, error) {
	var ext, member ustar
	if err := ext.parse(b[:blockSize]); err != nil {
		return nil, corrupt("%v", err)
	}
	if err := member.parse(b[2*blockSize:]); err != nil {
		return nil, corrupt("%v", err)
	}
	r := &record{name: member.name, size: member.size}
	_, comment, _, err := cutPax(b[blockSize : 2*blockSize])
	words := strings.Split(comment, " ")
	if err != nil || len(words) < 2 {
		return nil, corrupt("head of %q: no digest", r.name)
	}
	hash, _ := strings.CutPrefix(words[0], "sha256:")
	if n, err := hex.Decode(r.sum[:], []byte(hash)[:min(len(hash), 2*len(r.sum))]); err != nil || n != len(r.sum) {
		return nil, corrupt("head of %q: digest %q", r.name, hash)
	}
	raw, _ := strings.CutPrefix(words[1], "raw:")
	if r.raw, err = strconv.ParseInt(raw, 10, 64); err != nil {
		return nil, corrupt("head of %q: size %q", r.name, raw)
	}
	r.last = len(words) > 2
	if !bytes.Equal(r.head(), b[:headSize]) {
		return nil, corrupt("head of %q is not as msh writes it", r.name)
	}
	return r, nil
}

// chunkName is the name of a section's chunk.
func chunkName(machine, section string, n int) string {
	return fmt.Sprintf("%s/%s/%08d.zst", machine, section, n)
}

// SectionInfo is what a file tells of a section.
type SectionInfo struct {
	Machine, Name string
	Size          int64 // bytes once decompressed
	Stored        int64 // bytes of the file, heads and padding left out
	Chunks        int
}

// outline follows the members of a file as they are written or read: that their
// order is right, and what SHA256SUMS has to say of them.
type outline struct {
	machines *Manifest // nil until it was read
	sections []SectionInfo
	done     map[string]bool // MACHINE/SECTION that were begun
	open     bool            // the last section is not at its end
	sums     bytes.Buffer
	ended    bool
	size     int64 // of the file so far
}

// add takes the next member. The manifest's own contents are given to know.
func (o *outline) add(r *record) error {
	o.size += headSize + r.size + pad(r.size)
	switch {
	case o.ended:
		return corrupt("%q after the end", r.name)
	case o.sums.Len() == 0:
		if r.name != manifestName {
			return corrupt("no snapshot: it begins with %q", short(r.name))
		}
		if r.size > maxManifest || r.raw != r.size || r.last {
			return hostile("a manifest of %d bytes", r.size)
		}
	case r.name == sumsName:
		if o.open {
			s := o.sections[len(o.sections)-1]
			return corrupt("%s of %s is cut off after chunk %d", s.Name, s.Machine, s.Chunks)
		}
		o.ended = true
		if r.size != int64(o.sums.Len()) || r.raw != r.size || r.last || r.sum != sha256.Sum256(o.sums.Bytes()) {
			return corrupt("%s does not fit what it lists", sumsName)
		}
		return nil
	default:
		if err := o.chunk(r); err != nil {
			return err
		}
	}
	fmt.Fprintf(&o.sums, "%x  %s\n", r.sum, r.name)
	return nil
}

func (o *outline) chunk(r *record) error {
	machine, rest, _ := strings.Cut(r.name, "/")
	name, _, _ := strings.Cut(rest, "/")
	if !o.open {
		key := machine + "/" + name
		if !isSection(name) || o.machines.Machine(machine) == nil {
			return hostile("%q belongs to no machine of the manifest", short(r.name))
		}
		if o.done[key] {
			return hostile("%s twice", key)
		}
		if o.done == nil {
			o.done = map[string]bool{}
		}
		o.done[key] = true
		o.sections = append(o.sections, SectionInfo{Machine: machine, Name: name})
	}
	s := &o.sections[len(o.sections)-1]
	if want := chunkName(s.Machine, s.Name, s.Chunks); r.name != want {
		return corrupt("%q where %q belongs", short(r.name), want)
	}
	// Only the last chunk may be empty, so that the file bounds how many there are to unpack.
	if r.raw < 0 || r.raw > maxRaw || r.size > maxStored || r.raw == 0 && !r.last {
		return hostile("%q has %d bytes, %d unpacked", r.name, r.size, r.raw)
	}
	s.Chunks++
	s.Size += r.raw
	s.Stored += r.size
	o.open = !r.last
	return nil
}

// sumsRecord is the last member.
func (o *outline) sumsRecord() *record {
	n := int64(o.sums.Len())
	return &record{name: sumsName, size: n, raw: n, sum: sha256.Sum256(o.sums.Bytes())}
}
