// Reads lines of JSON [kind, text] and answers each with what Go's strconv makes of it: the number
// as it stands in JSON, or null. Of the kind "print" it answers with the text's characters that
// print, and "unicode" with the edition of Go's character tables.
package main

import (
	"encoding/json"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
)

func main() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var question [2]string
		if err := in.Decode(&question); err == io.EOF {
			return
		} else if err != nil {
			panic(err)
		}
		if out.Encode(answer(question[0], question[1])) != nil {
			out.Encode(nil) // infinity and NaN are no JSON
		}
	}
}

func answer(kind, text string) any {
	var number any
	var err error
	switch kind {
	case "float":
		var wide float64
		wide, err = strconv.ParseFloat(text, 32)
		number = float32(wide)
	case "int":
		number, err = strconv.ParseInt(text, 10, 64)
	case "bool":
		number, err = strconv.ParseBool(text)
	case "print":
		return strings.Map(func(r rune) rune {
			if strconv.IsPrint(r) {
				return r
			}
			return -1
		}, text)
	case "unicode":
		return unicode.Version
	}
	if err != nil {
		return nil
	}
	return number
}
