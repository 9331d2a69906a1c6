package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Level is how hard chunks are compressed.
type Level int

// The levels. At any, a chunk of zeros alone takes a few bytes.
const (
	LevelFast    Level = iota // zstd's fastest: costs little more than the copying
	LevelNone                 // stored, in zstd's own frames all the same
	LevelDefault              // zstd -3
	LevelBetter               // zstd -7 or so
)

// codec compresses chunks, several at a time.
type codec struct {
	level Level
	enc   *zstd.Encoder
}

func newCodec(level Level) (*codec, error) {
	if level < LevelFast || level > LevelBetter {
		return nil, fmt.Errorf("compression level %d: want one of the four", level)
	}
	c := &codec{level: level}
	if level == LevelNone {
		return c, nil
	}
	// What differs from the default: the digest makes a checksum needless, and
	// a frame is one segment, so that its size stands in its header.
	speed := map[Level]zstd.EncoderLevel{LevelFast: zstd.SpeedFastest, LevelDefault: zstd.SpeedDefault, LevelBetter: zstd.SpeedBetterCompression}[level]
	var err error
	c.enc, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(speed), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true),
		zstd.WithWindowSize(chunkSize), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithZeroFrames(true))
	return c, err
}

func (c *codec) close() {
	if c.enc != nil {
		c.enc.Close()
	}
}

// compress appends a frame with raw in it to dst.
func (c *codec) compress(dst, raw []byte) []byte {
	if c.level == LevelNone || bytes.Equal(raw, zeros[:len(raw)]) {
		return appendStored(dst, raw)
	}
	return c.enc.EncodeAll(raw, dst)
}

// appendStored appends a frame (RFC 8878, 3.1.1) of blocks that are either stored
// or, where they are nothing but zeros, run-length encoded.
func appendStored(dst, raw []byte) []byte {
	const (
		block  = 128 << 10 // RFC 8878, 3.1.1.2.4: Block_Maximum_Size
		repeat = 1 << 1    // RLE_Block; 0 is Raw_Block
	)
	dst = append(dst, 0x28, 0xb5, 0x2f, 0xfd, 0xa0) // magic; single segment, 4 bytes of content size
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(raw)))
	for {
		n := min(len(raw), block)
		head := uint32(n) << 3
		if n == len(raw) {
			head |= 1 // the last
		}
		zero := n > 0 && bytes.Equal(raw[:n], zeros[:n])
		if zero {
			head |= repeat
		}
		dst = append(dst, byte(head), byte(head>>8), byte(head>>16))
		if zero {
			dst = append(dst, 0)
		} else {
			dst = append(dst, raw[:n]...)
		}
		if raw = raw[n:]; len(raw) == 0 {
			return dst
		}
	}
}

// decoder is one for all readers: it has no state between chunks.
var decoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxRaw), zstd.WithDecodeAllCapLimit(true))
})

// decompress checks a chunk against its record, and unpacks it to dst, which has
// room for as much as the record says.
func decompress(dst []byte, r *record, stored []byte) ([]byte, error) {
	if sha256.Sum256(stored) != r.sum {
		return nil, corrupt("%s: its digest is another", r.name)
	}
	d, err := decoder()
	if err != nil {
		return nil, err
	}
	raw, err := d.DecodeAll(stored, dst[:0:r.raw])
	if err != nil {
		return nil, hostile("%s: %v", r.name, err)
	}
	if int64(len(raw)) != r.raw {
		return nil, hostile("%s: unpacks to %d bytes, not %d", r.name, len(raw), r.raw)
	}
	return raw, nil
}
