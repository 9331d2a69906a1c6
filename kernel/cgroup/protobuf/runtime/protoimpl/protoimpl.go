// Package protoimpl has the names that generated code uses of protobuf's runtime.
// See the package above it.
package protoimpl

import (
	"fmt"
	"unsafe"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// The versions of generated code that this can stand in for: as the original says.
const (
	MinVersion = 20
	MaxVersion = 20

	UnsafeEnabled = true
)

type (
	// EnforceVersion makes a constant that overflows where the versions do not fit.
	EnforceVersion uint
	// MessageState, SizeCache and UnknownFields are the first fields of every message.
	MessageState  struct{ info *MessageInfo }
	SizeCache     = int32
	UnknownFields = []byte
	Pointer       = unsafe.Pointer

	// MessageInfo describes a message to those who marshal it: here, to nobody.
	MessageInfo struct {
		Exporter func(v any, i int) any
	}
	DescBuilder struct {
		GoPackagePath                                     string
		RawDescriptor                                     []byte
		NumEnums, NumMessages, NumExtensions, NumServices int32
	}
	TypeBuilder struct {
		File              DescBuilder
		GoTypes           []any
		DependencyIndexes []int32
		MessageInfos      []MessageInfo
	}
)

// Build registers nothing.
func (TypeBuilder) Build() (out struct{ File protoreflect.FileDescriptor }) { return out }

func (s *MessageState) LoadMessageInfo() *MessageInfo   { return s.info }
func (s *MessageState) StoreMessageInfo(m *MessageInfo) { s.info = m }

// MessageOf is what the original calls where it has no unsafe pointers.
func (*MessageInfo) MessageOf(any) protoreflect.Message { return nil }

// X has the functions that generated code calls.
var X export

type export struct{}

// MessageStateOf is a message's first field.
func (export) MessageStateOf(p Pointer) *MessageState { return (*MessageState)(p) }

// MessageStringOf names the message's type. It shows no fields: %v would call
// String, and so this, again.
func (export) MessageStringOf(m any) string { return fmt.Sprintf("%T", m) }

// CompressGZIP is for descriptors, of which there are none.
func (export) CompressGZIP([]byte) []byte { return nil }
