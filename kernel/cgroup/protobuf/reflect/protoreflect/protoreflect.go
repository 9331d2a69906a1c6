// Package protoreflect has the types that generated code mentions. See the package
// protobuf, two above it.
package protoreflect

type (
	Message        any
	FileDescriptor any
)
