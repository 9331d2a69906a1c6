package stage0

import _ "embed"

//go:embed stage0_amd64.elf
var image []byte
