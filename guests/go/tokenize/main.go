// tokenize: a text plugin in Go: adds, greets, remembers, and splits UTF-8 text into lower-case words.
//
// A reactor: the host calls _initialize once, then the exports. Text goes in and comes out through buffers that the
// host allocates and frees here; a result is address << 32 | length, and its buffer is the host's to free.
package main

import (
	"strings"
	"unicode"
	"unsafe"
)

// buffers keeps the collector from what only the host holds an address of.
var buffers = map[unsafe.Pointer]struct{}{}

func keep(buffer []byte) unsafe.Pointer {
	address := unsafe.Pointer(unsafe.SliceData(buffer))
	buffers[address] = struct{}{}
	return address
}

func text(address unsafe.Pointer, length uint32) string {
	return string(unsafe.Slice((*byte)(address), length))
}

// result copies text into a buffer of its own; one byte longer, so that an empty text has an address too.
func result(text string) uint64 {
	buffer := append(make([]byte, 0, len(text)+1), text...)
	return uint64(uintptr(keep(buffer)))<<32 | uint64(len(text))
}

//go:wasmexport add
func add(a, b int32) int32 { return a + b }

//go:wasmexport alloc
func alloc(length uint32) unsafe.Pointer { return keep(make([]byte, 0, max(length, 1))) }

//go:wasmexport free
func free(address unsafe.Pointer) { delete(buffers, address) }

//go:wasmexport greet
func greet(address unsafe.Pointer, length uint32) uint64 {
	return result("Hello, " + text(address, length) + "!")
}

// tokenize answers the words of the text, one a line.
//
//go:wasmexport tokenize
func tokenize(address unsafe.Pointer, length uint32) uint64 {
	words := strings.FieldsFunc(text(address, length), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsNumber(r)
	})
	return result(strings.ToLower(strings.Join(words, "\n")))
}

// seen is what remember counts: a map and its strings, on Go's heap.
var seen = map[string]int32{}

// remember answers how often it was given this text.
//
//go:wasmexport remember
func remember(address unsafe.Pointer, length uint32) int32 {
	word := text(address, length) // a copy: the host's buffer will be another's
	seen[word]++
	return seen[word]
}

func main() {}
