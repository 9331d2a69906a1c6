package builtins

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"msh/interp"
	"msh/kernel"
	"msh/kernel/netx"
)

// Capture is a capture under way, as a Starlark value.
type Capture struct {
	s    *Session
	c    *kernel.Capture // nil in a dry run
	path string
}

var _ starlark.HasAttrs = (*Capture)(nil)

func (p *Capture) String() string { return fmt.Sprintf("<capture %s>", p.path) }

// Type implements starlark.Value.
func (p *Capture) Type() string { return "capture" }

// Freeze implements starlark.Value.
func (p *Capture) Freeze() {}

// Truth implements starlark.Value.
func (p *Capture) Truth() starlark.Bool { return true }

// Hash implements starlark.Value.
func (p *Capture) Hash() (uint32, error) { return starlark.String(p.path).Hash() }

// Attr implements starlark.HasAttrs.
func (p *Capture) Attr(name string) (starlark.Value, error) {
	if name == "path" {
		return starlark.String(p.path), nil
	}
	if w := p.s.method("Capture." + name); w != nil {
		return w.Bind(p), nil
	}
	return noAttr(p, name)
}

// AttrNames implements starlark.HasAttrs.
func (p *Capture) AttrNames() []string {
	return p.s.attrNames("Capture")
}

var captureParams = []interp.Param{
	{Name: "path", Type: "string", Required: true, Pos: true, Doc: "the file to write, of the host's; one that is there is replaced"},
	{Name: "filter", Type: "string", Default: `""`, Doc: "only what matches, in tcpdump's words (pcap-filter(7)): needs tcpdump to be installed"},
	{Name: "count", Type: "int", Default: "None", Doc: "it ends by itself after so many packets"},
}

const captureDoc = "The file is a pcap, as tcpdump and Wireshark read it. It has begun when the call returns, and goes on until it is stopped, has count packets, or the script ends."

// capture unpacks the parameters and starts one.
func capture(c *interp.Call, s *Session, what string, start func(netx.CaptureOptions) (*kernel.Capture, error)) (starlark.Value, error) {
	var path Text
	var filter string
	var count Whole
	if err := c.Unpack(&path, &filter, &count); err != nil {
		return nil, err
	}
	if named(c, "count") && count < 1 {
		return nil, fmt.Errorf("%s: count: got %d, want at least 1", c.Word.Name, count)
	}
	p := &Capture{s: s, path: string(path)}
	if s.dry {
		fmt.Fprintf(s.out, "%s: capture to %s\n", what, path)
		return p, nil
	}
	var err error
	p.c, err = start(netx.CaptureOptions{Path: string(path), Filter: filter, Count: int(count)})
	if err != nil {
		return nil, captureError(err, what, filter)
	}
	return p, nil
}

// captureError names what was to be captured as scripts do, and has a hint for a filter in another language.
func captureError(err error, what, filter string) error {
	// All interfaces are those of a vnet's own namespace.
	if inner := errors.Unwrap(err); inner != nil && err.Error() == "capture on all interfaces: "+inner.Error() {
		err = fmt.Errorf("capture on %s: %w", what, inner)
	}
	// Where tcpdump is not there, nobody has read the filter.
	if displayFilter(filter) && !strings.Contains(err.Error(), "install the package tcpdump") {
		return interp.WithHint(err, "these are words of Wireshark's display filters; wanted are those of pcap-filter(7): `host 10.0.0.1`, `tcp port 80`")
	}
	return err
}

// displayFilter tells what has the look of Wireshark's display filters: tcp.port == 80 || ip.addr == 10.0.0.1.
// Its expression is compiled here and not when msh starts, of which it would take a tenth.
func displayFilter(s string) bool {
	return regexp.MustCompile(`==|!=|\|\||&&|\b[a-z][a-z0-9]*\.[a-z_]+\b|\b(contains|matches)\b`).MatchString(s)
}

var netifCaptureWord = netifMethod(&interp.Word{
	Name:    "capture",
	Doc:     "Writes what goes through the interface to a file. " + captureDoc,
	Params:  captureParams,
	Returns: "a Capture: path, wait(), stop()",
	Errors:  "a file that cannot be written; a filter that tcpdump does not understand",
	Example: `lan = vnet(subnet="10.0.0.0/24")
a, b = [machine_rfork(name=n, resources=[netif(lan)]) for n in "ab".elems()]
p = b.netif("eth0").capture("/tmp/msh-example.pcap")
a.run(["ping", "-c2", "-i0.01", b.address])
print(p.stop().packets >= 4)
host.run(["rm", "/tmp/msh-example.pcap"])`,
	Output: "True\n",
}, func(c *interp.Call, n *Netif) (starlark.Value, error) {
	return capture(c, n.v.s, n.v.Name()+" "+n.name, func(o netx.CaptureOptions) (*kernel.Capture, error) { return n.v.m.Capture(n.name, o) })
})

var vnetCaptureWord = vnetMethod(&interp.Word{
	Name:    "capture",
	Doc:     "Writes all that goes over the network to a file, each frame once, as it comes in at the switch. " + captureDoc,
	Params:  captureParams,
	Returns: "a Capture: path, wait(), stop()",
	Errors:  "a file that cannot be written; a filter that tcpdump does not understand",
	Example: `lan = vnet(subnet="10.0.0.0/24")
a, b = [machine_rfork(name=n, resources=[netif(lan)]) for n in "ab".elems()]
p = lan.capture("/tmp/msh-example.pcap", filter="icmp")
a.run(["ping", "-c2", "-i0.01", b.address])
print(p.stop().packets)
host.run(["rm", "/tmp/msh-example.pcap"])`,
	Output: "4\n",
}, func(c *interp.Call, n *VNet) (starlark.Value, error) {
	return capture(c, n.s, "vnet "+n.v.Name(), n.v.Capture)
})

// captureMethod makes a word that is a method of a capture.
func captureMethod(w *interp.Word, fn func(c *interp.Call, p *Capture) (starlark.Value, error)) *interp.Word {
	w.Name = "Capture." + w.Name
	w.Needs = "root"
	w.Fn = func(c *interp.Call) (starlark.Value, error) { return fn(c, c.Recv.(*Capture)) }
	return w
}

const captureExample = `lan = vnet(subnet="10.0.0.0/24")
a, b = [machine_rfork(name=n, resources=[netif(lan)]) for n in "ab".elems()]
`

var captureStopWord = captureMethod(&interp.Word{
	Name:    "stop",
	Doc:     "Ends the capture; the file is whole then. Stopping it twice is no error, nor is it where the machine or the network has ended, and the capture with it.",
	Returns: "struct(packets, dropped): how many are in the file, and how many the kernel had no room for",
	Errors:  "the file could not be written; the interface has been taken from a machine that goes on",
	Example: captureExample + `p = lan.capture("/tmp/msh-example.pcap", filter="icmp")
a.run(["ping", "-c1", b.address])
print(p.stop())
host.run(["rm", "/tmp/msh-example.pcap"])`,
	Output: "struct(dropped = 0, packets = 2)\n",
}, func(c *interp.Call, p *Capture) (starlark.Value, error) {
	if err := c.Unpack(); err != nil {
		return nil, err
	}
	if p.c == nil {
		return interp.Unknown, nil
	}
	return p.stop()
})

func (p *Capture) stop() (starlark.Value, error) {
	s, err := p.c.Stop()
	if err != nil {
		return nil, err
	}
	return starlarkstruct.FromStringDict(starlarkstruct.Default, starlark.StringDict{
		"packets": starlark.MakeUint64(s.Packets), "dropped": starlark.MakeUint64(s.Dropped)}), nil
}

var captureWaitWord = captureMethod(&interp.Word{
	Name: "wait",
	Doc:  "Waits until the capture has as many packets as its count, and ends it.",
	Params: []interp.Param{
		{Name: "timeout", Type: "duration", Default: `"10s"`, Pos: true, Doc: "how long at most"},
	},
	Returns: "struct(packets, dropped)",
	Errors:  "the time is up; it goes on",
	Example: captureExample + `p = lan.capture("/tmp/msh-example.pcap", filter="icmp", count=2)
a.run(["ping", "-c1", b.address])
print(p.wait().packets)
host.run(["rm", "/tmp/msh-example.pcap"])`,
	Output: "2\n",
}, func(c *interp.Call, p *Capture) (starlark.Value, error) {
	timeout := interp.Duration(10 * time.Second)
	if err := c.Unpack(&timeout); err != nil {
		return nil, err
	}
	if p.c == nil {
		return interp.Unknown, nil
	}
	if err := p.c.Wait(c.Context(), time.Duration(timeout)); err != nil {
		return nil, err
	}
	return p.stop()
})
