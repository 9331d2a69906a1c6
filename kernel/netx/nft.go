package netx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	nfnl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Missing says that the kernel lacks something, and what would bring it.
type Missing struct {
	Feature string // in the words of its users: "NAT by nftables"
	Mend    string // the kernel option or version
	Err     error  // what the kernel said
}

func (e *Missing) Error() string { return fmt.Sprintf("this kernel has no %s: %v", e.Feature, e.Err) }

func (e *Missing) Unwrap() error { return e.Err }

// Hint is the mend.
func (e *Missing) Hint() string { return e.Mend }

// tables is a socket to the nf_tables of a namespace.
type tables struct {
	*nftables.Conn
	raw *nfnl.Conn // the same socket
}

// nftTimeout is how long the kernel may take for all that is asked over one
// socket. It is there because a kernel without nf_tables answers a whole batch
// with one error (nfnetlink_rcv_batch), while the library waits for one answer
// to each message.
const nftTimeout = 30 * time.Second

// nftBuffer is room, in bytes, for a transaction of some thousand messages, which
// is sent whole, and for as many answers, which come at once. The usual 208 KiB
// hold some 250 answers.
const nftBuffer = 8 << 20

// families are those of nft(8), by name.
var families = map[string]nftables.TableFamily{
	"ip":     nftables.TableFamilyIPv4,
	"ip6":    nftables.TableFamilyIPv6,
	"inet":   nftables.TableFamilyINet,
	"arp":    nftables.TableFamilyARP,
	"bridge": nftables.TableFamilyBridge,
	"netdev": nftables.TableFamilyNetdev,
}

func familyName(family nftables.TableFamily) string {
	for name, f := range families {
		if f == family {
			return name
		}
	}
	return fmt.Sprintf("family %d", family)
}

// tables opens the socket, which the caller closes. The thread that makes it dies,
// as every one does that has stood in another namespace.
func (n *NS) tables() (*tables, error) {
	t := &tables{}
	err := n.Do(func() (err error) {
		t.Conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *nfnl.Conn) error {
			t.raw = c
			return errors.Join(c.SetDeadline(time.Now().Add(nftTimeout)), c.SetReadBuffer(nftBuffer), c.SetWriteBuffer(nftBuffer))
		}))
		return err
	})
	if err == nil {
		// A first question, to learn whether there is anybody to answer.
		if _, err = t.raw.Execute(request(unix.NFT_MSG_GETGEN, nfnl.Request)); err == nil {
			return t, nil
		}
		t.close()
	}
	// The socket's family is CONFIG_NETFILTER_NETLINK's; EINVAL is its answer for a subsystem it has not got.
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return nil, &Missing{"nftables", "a kernel with CONFIG_NF_TABLES (modprobe nf_tables)", err}
	}
	return nil, fmt.Errorf("open nftables: %w", err)
}

func (t *tables) close() { t.CloseLasting() }

// commit has the kernel do the whole transaction, or nothing of it. Of the errors,
// one for each message that is at fault, the first is returned.
func (t *tables) commit() error {
	err := t.Flush()
	if errno := unix.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}

// replace adds an empty table to the transaction, in the place of one of the same
// name if there is one. Only then, as the socket's end waits for what was deleted
// to be freed, which takes a grace period of RCU (nft_rcv_nl_event).
func (t *tables) replace(own *nftables.Table) {
	t.AddTable(own)
	if _, err := t.ListTableOfFamily(own.Name, own.Family); err == nil {
		t.DelTable(own)
		t.AddTable(own)
	}
}

// RemoveTable removes a table with all that is in it. family is a word of nft(8)'s:
// ip, ip6, inet, arp, bridge or netdev. One that is not there is no error.
func (n *NS) RemoveTable(family, name string) error {
	f, ok := families[family]
	if !ok {
		return fmt.Errorf("remove table %s: got family %q, want ip, ip6, inet, arp, bridge or netdev", name, family)
	}
	t, err := n.tables()
	if err != nil {
		if lacking := (*Missing)(nil); errors.As(err, &lacking) {
			return nil
		}
		return err
	}
	defer t.close()
	t.DelTable(&nftables.Table{Family: f, Name: name})
	if err := t.commit(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove table %s %s: %w", family, name, err)
	}
	return nil
}

// lacks tells whether a transaction that makes all it refers to broke on something
// that the kernel does not have. Chain types and expressions that it has not got
// are ENOENT (nf_tables_chain_type_lookup, nft_expr_type_get).
func lacks(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOENT, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT}, func(e error) bool {
		return errors.Is(err, e)
	})
}

// interfaceBytes is an interface's name as rules compare it: with the NUL, by
// which nft(8) and iptables tell a whole name from the start of one.
func interfaceBytes(name string) []byte { return append([]byte(name), 0) }

// iface matches what comes in (MetaKeyIIFNAME) or goes out (MetaKeyOIFNAME) by an interface.
func iface(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: interfaceBytes(name)},
	}
}

// checkName tells whether an interface can be called so.
func checkName(name string) error {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return fmt.Errorf("got %q, want the name of an interface, of 1 to %d bytes", name, unix.IFNAMSIZ-1)
	}
	return nil
}

// request is a question to nf_tables about all families.
func request(kind uint8, flags nfnl.HeaderFlags) nfnl.Message {
	return nfnl.Message{
		Header: nfnl.Header{Type: nfnl.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | int(kind)), Flags: flags},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, // struct nfgenmsg
	}
}

// errChanging says that somebody else kept changing what was being read.
var errChanging = errors.New("the rules keep changing")

// dump reads all objects of a kind. The library's own reading would go down with
// any rule in which it knows an expression's name but not the form at hand, and
// other people's rules can have any.
func (t *tables) dump(kind uint8, each func(family nftables.TableFamily, a *nfnl.AttributeDecoder)) error {
	answers, err := t.raw.Execute(request(kind, nfnl.Request|nfnl.Dump))
	if err != nil {
		return err
	}
	for _, m := range answers {
		if m.Header.Flags&nfnl.DumpInterrupted != 0 {
			return errChanging
		}
		if len(m.Data) < 4 {
			return fmt.Errorf("got an answer of %d bytes, want at least 4", len(m.Data))
		}
		a, err := nfnl.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return err
		}
		a.ByteOrder = binary.BigEndian
		each(nftables.TableFamily(m.Data[0]), a)
		if err := a.Err(); err != nil {
			return err
		}
	}
	return nil
}

// ProbeNAT tells by trying whether the kernel has what Masquerade needs. It
// returns a *Missing if not.
func ProbeNAT() error {
	return probe(func(n *NS) error { return n.Masquerade("probe", probePrefixes, "lo") })
}

// ProbePartition tells by trying whether the kernel has what Partition needs. It
// returns a *Missing if not.
func ProbePartition() error {
	return probe(func(n *NS) error { return n.Partition([][]string{{"a"}, {"b"}}) })
}

func probe(try func(*NS) error) error {
	ns, err := Make(nil)
	if err != nil {
		return err
	}
	defer ns.Close()
	return try(ns)
}

// Tables names the tables of the packet filter (nftables) in the namespace, as nft(8)
// does: "inet filter". Where the kernel has none of it there are none.
func (n *NS) Tables() ([]string, error) {
	t, err := n.tables()
	if missing := (*Missing)(nil); errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer t.close()
	all, err := t.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list the packet filter's tables: %w", err)
	}
	var names []string
	for _, table := range all {
		names = append(names, familyName(table.Family)+" "+table.Name)
	}
	return names, nil
}
