package builtins

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
	"msh/kernel/netx"
)

// linkParams are the options of every link, which are named alike wherever one is made or changed.
func linkParams(params ...interp.Param) []interp.Param {
	doc := map[string]struct{ kind, doc string }{
		"rate":         {"rate", `bits per second as an int, or "10mbit", "1gbit"; what comes faster waits, and beyond limit is lost`},
		"burst":        {"size", "what may pass at once after a pause; a sensible one when left out"},
		"limit":        {"int", "packets that may wait"},
		"delay":        {"duration", "how long each packet is under way, in one direction"},
		"jitter":       {"duration", "how much that varies; it reorders packets"},
		"distribution": {"string", `how it varies: "uniform", "normal", "pareto" or "paretonormal"`},
		"loss":         {"number", "percent of packets lost"},
		"duplicate":    {"number", "percent of packets that come twice"},
		"reorder":      {"number", "percent of packets sent at once, ahead of those that are delayed; needs delay"},
		"corrupt":      {"number", "percent of packets with a bit flipped"},
	}
	for _, name := range kernel.CableOptions {
		d := doc[name]
		params = append(params, interp.Param{Name: name, Type: d.kind + " or pair", Default: "None", Doc: d.doc})
	}
	return params
}

// linkArgs are the values of those options.
type linkArgs [10]starlark.Value

// dst is where to unpack them, after the others.
func (l *linkArgs) dst(others ...any) []any {
	for i := range l {
		others = append(others, &l[i])
	}
	return others
}

// cable reads them. Each is one value for both directions, or a pair: out and in, or from the first end to the second
// and back.
func (l *linkArgs) cable(c *interp.Call) (kernel.Cable, error) {
	var cable kernel.Cable
	for i, name := range kernel.CableOptions {
		v := l[i]
		if v == nil {
			continue
		}
		both := []starlark.Value{v, v}
		if list, ok := v.(starlark.Sequence); ok {
			if list.Len() != 2 {
				return cable, fmt.Errorf("%s: %s: got %d values, want one, or a pair of one for each direction", c.Word.Name, name, list.Len())
			}
			both = both[:0]
			for e := range starlark.Elements(list) {
				both = append(both, e)
			}
		}
		for j, d := range []*netx.Impair{&cable.Out, &cable.In} {
			if err := setOption(d, name, both[j]); err != nil {
				return cable, fmt.Errorf("%s: %s: %w", c.Word.Name, name, err)
			}
		}
		cable.Named = append(cable.Named, name)
	}
	if strings.HasSuffix(c.Word.Name, ".set") {
		return cable, nil // beside what there is already it may make sense; see optionError
	}
	return cable, optionError(c, cable.Validate())
}

// optionError puts the word before the error of an option.
func optionError(c *interp.Call, err error) error {
	if e, ok := err.(*netx.OptionError); ok {
		return fmt.Errorf("%s: %w", c.Word.Name, e)
	}
	return err
}

func setOption(i *netx.Impair, name string, v starlark.Value) error {
	percent := func(dst *float64) error {
		var p Percent
		if err := p.Unpack(v); err != nil {
			return err
		}
		if math.IsNaN(float64(p)) || p < 0 || p > 100 {
			return fmt.Errorf("got %s, want 0 to 100 percent", v)
		}
		*dst = float64(p)
		return nil
	}
	duration := func(dst *time.Duration) error {
		var d interp.Duration
		if n, ok := v.(starlark.Int); ok && n.Sign() == 0 {
			*dst = 0 // which clears, as with the others
			return nil
		}
		if err := d.Unpack(v); err != nil {
			return err
		}
		*dst = time.Duration(d)
		return nil
	}
	switch name {
	case "rate":
		var r Rate
		if err := r.Unpack(v); err != nil {
			return err
		}
		i.Rate = uint64(r)
	case "burst":
		var s Size
		if err := s.Unpack(v); err != nil {
			return err
		}
		i.Burst = uint64(s)
	case "limit":
		var n Whole
		if err := n.Unpack(v); err != nil {
			return err
		}
		if n < 0 || n > math.MaxUint32 {
			return fmt.Errorf("got %d, want 1 to %d packets, or 0 for what is usual", n, uint32(math.MaxUint32))
		}
		i.Limit = uint32(n)
	case "delay":
		return duration(&i.Delay)
	case "jitter":
		return duration(&i.Jitter)
	case "distribution":
		var t Text
		if err := t.Unpack(v); err != nil {
			return err
		}
		i.Distribution = string(t)
	case "loss":
		return percent(&i.Loss)
	case "duplicate":
		return percent(&i.Duplicate)
	case "reorder":
		return percent(&i.Reorder)
	case "corrupt":
		return percent(&i.Corrupt)
	}
	return nil
}

// Rate is the value of a parameter in bits per second: an int, or "10mbit", "1gbit". 0 is no limit.
type Rate uint64

// Unpack implements starlark.Unpacker.
func (r *Rate) Unpack(v starlark.Value) error {
	switch v := v.(type) {
	case starlark.Int:
		n, ok := v.Uint64()
		if !ok || n > math.MaxInt64 {
			return fmt.Errorf("got %s, want bits per second, as 10000000 or \"10mbit\"", kernel.Short(v.String()))
		}
		*r = Rate(n)
		return nil
	case starlark.String:
		n, err := parseRate(string(v))
		if err != nil {
			return err
		}
		*r = Rate(n)
		return nil
	}
	return fmt.Errorf(`got %s, want a rate: bits per second as an int, or "10mbit", "1gbit"`, v.Type())
}

func parseRate(text string) (uint64, error) {
	bad := fmt.Errorf(`got %q, want a rate: bits per second as an int, or "500kbit", "10mbit", "1gbit"`, kernel.Short(text))
	number, scale := text, 1.0
	for _, u := range []struct {
		name  string
		scale float64
	}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"tbit", 1e12}, {"bit", 1}} {
		if n, ok := strings.CutSuffix(strings.ToLower(text), u.name); ok {
			number, scale = n, u.scale
			break
		}
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || !(f >= 0) || strings.ContainsAny(number, "xXpP_eE+") || f*scale >= math.MaxInt64 {
		return 0, bad
	}
	return uint64(math.Round(f * scale)), nil
}
