package netx

import "encoding/binary"

// The file format of pcap-savefile(5), little endian, with times in nanoseconds:
// a header of 24 bytes, then a header of 16 bytes before each packet. It is written
// by hand, as gopacket's pcapgo brings in gopacket/layers, whose init takes 0.13 ms
// of every start of msh (GODEBUG=inittrace=1).

const (
	pcapMagic    = 0xa1b23c4d
	pcapEthernet = 1       // LINKTYPE_ETHERNET
	pcapMaxLen   = 1 << 18 // bytes of a packet, tcpdump's and Wireshark's limit as well
)

// pcapHeader begins a file whose packets are cut after snaplen bytes.
func pcapHeader(snaplen int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, pcapMagic)
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...) // the time zone and its accuracy, always 0
	b = binary.LittleEndian.AppendUint32(b, uint32(snaplen))
	return binary.LittleEndian.AppendUint32(b, pcapEthernet)
}

// appendRecord appends the header of a packet: when it came, how many bytes of it
// follow, and how many it had.
func appendRecord(b []byte, sec, nsec uint32, kept, had int) []byte {
	b = binary.LittleEndian.AppendUint32(b, sec)
	b = binary.LittleEndian.AppendUint32(b, nsec)
	b = binary.LittleEndian.AppendUint32(b, uint32(kept))
	return binary.LittleEndian.AppendUint32(b, uint32(had))
}
