package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"msh/kernel/checkpoint"
)

// forgeCommand is `forge WHAT IN OUT`: a snapshot that is not what it was.
func forgeCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: forge WHAT IN OUT")
	}
	b := []byte(ts.ReadFile(args[1]))
	switch args[0] {
	case "cut":
		b = b[:len(b)-2000]
	case "flip":
		b[len(b)/2] ^= 4
	case "newer":
		b = retold(b, fmt.Sprintf(`"format": %d`, checkpoint.Format), `"format": 9`)
	case "name": // of the first machine
		b = retold(b, `"name": "box"`, `"name": "../"`)
	case "cpu":
		b = remade(ts, b, func(m *checkpoint.Manifest) { m.Host.CPUFlags = append(m.Host.CPUFlags, "avx9000") })
	case "arch":
		b = remade(ts, b, func(m *checkpoint.Manifest) { m.Host.Arch = "s390x" })
	case "base":
		b = remade(ts, b, func(m *checkpoint.Manifest) { m.Machines[0].Needs.Bases[0].Path = "/no/such/root" })
	default:
		ts.Fatalf("forge: %s?", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), b, 0o600))
}

// retold has other words in the manifest, whose digest is right.
func retold(b []byte, was, is string) []byte {
	from := bytes.Index(b, []byte("{\n  \"format\""))
	to := from + bytes.Index(b[from:], []byte("\n}\n")) + 3
	text := bytes.Replace(b[from:to], []byte(was), []byte(is), 1)
	sum := func(b []byte) []byte { return fmt.Appendf(nil, "%x", sha256.Sum256(b)) }
	return bytes.Replace(bytes.Replace(b, sum(b[from:to]), sum(text), 1), b[from:to], text, 1)
}

// remade is a snapshot with another manifest, and with nothing else.
func remade(ts *testscript.TestScript, b []byte, change func(*checkpoint.Manifest)) []byte {
	r, err := checkpoint.NewReader(bytes.NewReader(b))
	ts.Check(err)
	defer r.Close()
	var out bytes.Buffer
	w, err := checkpoint.NewWriter(&out, checkpoint.Options{})
	ts.Check(err)
	change(r.Manifest())
	ts.Check(w.Manifest(r.Manifest()))
	_, err = w.Commit()
	ts.Check(err)
	return out.Bytes()
}
