package checkpoint

import (
	"bytes"
	"fmt"
	"strconv"
)

const blockSize = 512

// zeros is what padding and a tar's end are compared with.
var zeros [1 << 20]byte

// ustar is a tar header's block, POSIX.1-2001 pax(1), "ustar Interchange Format".
type ustar struct {
	name, link   string
	mode         uint32
	uid, gid     uint32
	size, mtime  int64
	kind         byte
	major, minor uint32
}

// The kinds of members, and pax's own.
const (
	kindFile  = '0'
	kindHard  = '1'
	kindLink  = '2'
	kindChar  = '3'
	kindBlock = '4'
	kindDir   = '5'
	kindFifo  = '6'
	kindPax   = 'x'
)

// What fits into a header's fields; more goes into a pax record.
const (
	maxName   = 100
	maxNumber = 1<<33 - 1 // size, mtime: 11 octal digits
	maxID     = 1<<21 - 1 // 7 octal digits
)

// put lays the header out. What does not fit is 0 or cut off: there is a pax
// record for it.
func (u *ustar) put(b []byte) {
	clear(b[:blockSize])
	copy(b[:100], u.name)
	octal(b[100:108], int64(u.mode))
	octal(b[108:116], int64(u.uid))
	octal(b[116:124], int64(u.gid))
	octal(b[124:136], u.size)
	octal(b[136:148], u.mtime)
	copy(b[148:156], "        ")
	b[156] = u.kind
	copy(b[157:257], u.link)
	copy(b[257:265], "ustar\x0000")
	octal(b[329:337], int64(u.major))
	octal(b[337:345], int64(u.minor))
	sum := 0
	for _, c := range b[:blockSize] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// octal writes a number with leading zeros and a NUL.
func octal(field []byte, n int64) {
	if n < 0 || n >= 1<<(3*(len(field)-1)) {
		n = 0
	}
	for i := len(field) - 2; i >= 0; i-- {
		field[i] = '0' + byte(n&7)
		n >>= 3
	}
}

// parse reads a header that put wrote; any other is refused.
func (u *ustar) parse(b []byte) error {
	var err error
	number := func(field []byte) int64 {
		n, e := strconv.ParseUint(string(field[:len(field)-1]), 8, 63)
		if e != nil && err == nil {
			err = fmt.Errorf("tar header: number %q", field)
		}
		return int64(n)
	}
	text := func(field []byte) string {
		if i := bytes.IndexByte(field, 0); i >= 0 {
			field = field[:i]
		}
		return string(field)
	}
	*u = ustar{
		name: text(b[:100]), link: text(b[157:257]), kind: b[156],
		mode: uint32(number(b[100:108])), uid: uint32(number(b[108:116])), gid: uint32(number(b[116:124])),
		size: number(b[124:136]), mtime: number(b[136:148]),
		major: uint32(number(b[329:337])), minor: uint32(number(b[337:345])),
	}
	if err != nil {
		return err
	}
	var again [blockSize]byte
	u.put(again[:])
	if !bytes.Equal(again[:], b[:blockSize]) {
		return fmt.Errorf("tar header of %q is not as msh writes it", u.name)
	}
	return nil
}

// appendPax adds a record of a pax header: its own length, key and value.
func appendPax(b []byte, key, value string) []byte {
	n := len(key) + len(value) + 3
	length := n + len(strconv.Itoa(n))
	if n+len(strconv.Itoa(length)) != length {
		length++ // the length's own digits made it one digit longer
	}
	b = strconv.AppendInt(b, int64(length), 10)
	b = append(b, ' ')
	b = append(b, key...)
	b = append(b, '=')
	b = append(b, value...)
	return append(b, '\n')
}

// cutPax takes the first record off a pax header.
func cutPax(b []byte) (key, value string, rest []byte, err error) {
	space := bytes.IndexByte(b[:min(len(b), 12)], ' ')
	if space <= 0 {
		return "", "", nil, fmt.Errorf("pax record without a length")
	}
	n, err := strconv.ParseUint(string(b[:space]), 10, 31)
	if err != nil || int(n) > len(b) || int(n) < space+3 || b[n-1] != '\n' || b[0] == '0' {
		return "", "", nil, fmt.Errorf("pax record of length %q", b[:space])
	}
	k, v, ok := bytes.Cut(b[space+1:n-1], []byte("="))
	if !ok || len(k) == 0 {
		return "", "", nil, fmt.Errorf("pax record without a key")
	}
	return string(k), string(v), b[n:], nil
}

// pad is how many bytes follow n bytes of data.
func pad(n int64) int64 { return -n & (blockSize - 1) }
