// Renders Ollama TEMPLATEs with Go's own text/template, as Ollama's server does for a template
// without .Messages. Reads lines of JSON {"template", "system", "messages": [{"role", "content"}]},
// where "system" is the Modelfile's SYSTEM, and answers each with a line {"text"} or {"error"}.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

type request struct {
	Template, System string
	Messages         []message
}

type turn struct{ System, Prompt, Response string }

func main() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var r request
		if err := in.Decode(&r); err == io.EOF {
			return
		} else if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		answer := map[string]string{}
		if text, err := render(r.Template, turns(joined(conversation(r)))); err != nil {
			answer["error"] = err.Error()
		} else {
			answer["text"] = text
		}
		if err := out.Encode(answer); err != nil {
			os.Exit(1)
		}
	}
}

// conversation puts the Modelfile's SYSTEM in front of messages that begin with no system text.
func conversation(r request) []message {
	if r.System != "" && (len(r.Messages) == 0 || r.Messages[0].Role != "system") {
		return append([]message{{"system", r.System}}, r.Messages...)
	}
	return r.Messages
}

// joined makes one message of those of one role that follow each other.
func joined(messages []message) []message {
	var all []message
	for _, m := range messages {
		if last := len(all) - 1; last >= 0 && all[last].Role == m.Role {
			all[last].Content += "\n\n" + m.Content
		} else {
			all = append(all, m)
		}
	}
	return all
}

// turns fills one turn after the other. A turn is over where a system text comes after any
// text, or a prompt after a response.
func turns(messages []message) []turn {
	all := []turn{{}}
	for _, m := range messages {
		current := &all[len(all)-1]
		over := current.Response != "" || m.Role == "system" && current.Prompt != ""
		if over && m.Role != "assistant" {
			all = append(all, turn{})
			current = &all[len(all)-1]
		}
		switch m.Role {
		case "system":
			current.System = m.Content
		case "user":
			current.Prompt = m.Content
		case "assistant":
			current.Response = m.Content
		}
	}
	return all
}

// render executes the template once per turn, for the last one only up to .Response.
func render(source string, turns []turn) (string, error) {
	whole, err := template.New("").Parse(source)
	if err != nil {
		return "", err
	}
	upToResponse, err := cut(template.Must(template.New("").Parse(source)))
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for i, t := range turns {
		executed := whole
		if i == len(turns)-1 {
			executed = upToResponse
		}
		if err := executed.Execute(&text, map[string]any{
			"System": t.System, "Prompt": t.Prompt, "Response": t.Response,
		}); err != nil {
			return "", err
		}
	}
	return text.String(), nil
}

// cut removes what follows .Response, which must not stand inside of {{ if }} and the like.
func cut(t *template.Template) (*template.Template, error) {
	for i, node := range t.Root.Nodes {
		if node.String() == "{{.Response}}" {
			t.Root.Nodes = t.Root.Nodes[:i+1]
			return t, nil
		}
	}
	return nil, fmt.Errorf("no {{ .Response }} outside of other actions")
}
