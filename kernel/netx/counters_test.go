package netx

import "testing"

func TestCounters(t *testing.T) {
	a, b := makeNS(t), makeNS(t)
	if err := a.AddVeth(Veth{End: End{Name: "eth0", Index: 5}, Far: End{Name: "eth0", Index: 6}, FarNS: b}); err != nil {
		t.Fatal(err)
	}
	dressed(t, a, 5, "10.0.0.1/24")
	dressed(t, b, 6, "10.0.0.2/24")
	reaches(t, a, b, "10.0.0.2")
	sent, err := a.Counters(5)
	if err != nil {
		t.Fatal(err)
	}
	// At least who-has, its answer, and the datagram, of 42 and 47 bytes.
	if sent.TxPackets < 2 || sent.TxBytes < 42+47 || sent.RxPackets < 1 || sent.RxBytes < 42 {
		t.Errorf("got %+v", sent)
	}
	if sent.RxErrors+sent.TxErrors+sent.RxDropped+sent.TxDropped != 0 {
		t.Errorf("nothing was lost: got %+v", sent)
	}
	got, err := b.Counters(6)
	if err != nil || got.RxPackets < sent.TxPackets {
		t.Errorf("the other end: got %+v, %v, want at least what was sent before: %+v", got, err, sent)
	}
	if _, err := a.Counters(99); err == nil {
		t.Error("there is no 99")
	}
}
