package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	engines "github.com/moby/profiles/seccomp"
	"golang.org/x/sys/unix"
)

// shape is what an object of a profile may have: by name the shape of the object, or of
// those in the list, that is there; nil where it is neither.
type shape map[string]shape

var (
	filterShape  = shape{"caps": nil, "arches": nil, "minKernel": nil}
	argShape     = shape{"index": nil, "value": nil, "valueTwo": nil, "op": nil}
	ruleShape    = shape{"names": nil, "name": nil, "action": nil, "errnoRet": nil, "errno": nil, "args": argShape, "comment": nil, "includes": filterShape, "excludes": filterShape}
	profileShape = shape{"defaultAction": nil, "defaultErrnoRet": nil, "defaultErrno": nil, "architectures": nil, "archMap": {"architecture": nil, "subArchitectures": nil},
		"flags": nil, "listenerPath": nil, "listenerMetadata": nil, "syscalls": ruleShape}
)

// strict is the profile as container engines read it, if it is one to the letter: a name
// that is misspelt would make a rule another one than is meant, and a null in a list is no
// rule. Errors that have names, as Podman's profiles give them beside the numbers, become
// numbers.
func strict(text []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var top map[string]any
	if err := d.Decode(&top); err != nil {
		return nil, fmt.Errorf("no JSON object: %w", explainType(err))
	}
	if d.More() {
		return nil, errors.New("more than one JSON value")
	}
	if err := profileShape.check("", top); err != nil {
		return nil, err
	}
	if err := numberErrors("", top, "defaultErrno", "defaultErrnoRet"); err != nil {
		return nil, err
	}
	rules, _ := top["syscalls"].([]any)
	for i, r := range rules {
		at, rule := fmt.Sprintf("syscalls[%d].", i), r.(map[string]any)
		if err := numberErrors(at, rule, "errno", "errnoRet"); err != nil {
			return nil, err
		}
		args, _ := rule["args"].([]any)
		for j, a := range args {
			for _, name := range []string{"index", "value"} { // which would be 0
				if a.(map[string]any)[name] == nil {
					return nil, fmt.Errorf("%sargs[%d]: no %s", at, j, name)
				}
			}
		}
	}
	b, err := json.Marshal(top)
	if err != nil {
		return nil, err
	}
	return b, explainType(json.Unmarshal(b, &engines.Seccomp{}))
}

// check tells whether an object has that shape; at is where it is, with a dot behind.
func (s shape) check(at string, object map[string]any) error {
	for _, name := range slices.Sorted(maps.Keys(object)) {
		inner, ok := s[name]
		if !ok {
			return fmt.Errorf("%sa field %q: want %s", strings.TrimSuffix(at, ".")+colon(at), name, strings.Join(slices.Sorted(maps.Keys(s)), " "))
		}
		if inner == nil {
			continue
		}
		switch v := object[name].(type) {
		case []any:
			for i, e := range v {
				where := fmt.Sprintf("%s%s[%d]", at, name, i)
				o, ok := e.(map[string]any)
				if !ok {
					return fmt.Errorf("%s: got %s, want an object", where, kindOf(e))
				}
				if err := inner.check(where+".", o); err != nil {
					return err
				}
			}
		case map[string]any:
			if err := inner.check(at+name+".", v); err != nil {
				return err
			}
		}
	}
	return nil
}

func colon(at string) string {
	if at == "" {
		return ""
	}
	return ": "
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "a string"
	case bool:
		return "a truth value"
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return "a number"
}

// numberErrors puts the number of an error that has a name in the number's place.
func numberErrors(at string, object map[string]any, name, number string) error {
	v, ok := object[name]
	delete(object, name)
	text, isText := v.(string)
	if !ok || isText && text == "" {
		return nil
	}
	for n := unix.Errno(1); isText && n <= 4095; n++ {
		if unix.ErrnoName(n) == text {
			object[number] = int(n)
			return nil
		}
	}
	if !isText {
		return fmt.Errorf("%s%s: got %s, want the name of an error, as \"EPERM\"", at, name, kindOf(v))
	}
	return fmt.Errorf("%s%s: got %q, want the name of an error, as \"EPERM\"", at, name, text)
}

// explainType says what encoding/json does in the profile's words, not in Go's.
func explainType(err error) error {
	var e *json.UnmarshalTypeError
	if !errors.As(err, &e) {
		return err
	}
	var path []string
	for _, part := range strings.Split(e.Field, ".") {
		if part != "" && !strings.HasPrefix(part, "Linux") { // a Go type that is embedded
			path = append(path, part)
		}
	}
	want := "an object"
	switch e.Type.Kind() {
	case reflect.String:
		want = "a string"
	case reflect.Uint, reflect.Uint32, reflect.Uint64:
		want = "a whole number of at most 64 bits, 0 or more"
	case reflect.Slice:
		want = "a list"
	}
	at := strings.Join(path, ".")
	return fmt.Errorf("%sgot %s, want %s", at+colon(at), e.Value, want)
}
