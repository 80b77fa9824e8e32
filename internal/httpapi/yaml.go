package httpapi

import (
	"encoding/json"
	"iter"

	"go.yaml.in/yaml/v4"

	"github.com/viralpilot/user-management/internal/user"
)

// members iterates over a mapping.
func members(n *yaml.Node) iter.Seq2[string, *yaml.Node] {
	return func(yield func(string, *yaml.Node) bool) {
		for i := 0; i < len(n.Content); i += 2 {
			if !yield(n.Content[i].Value, n.Content[i+1]) {
				return
			}
		}
	}
}

// valueOf returns what a mapping has under the name, or nil.
func valueOf(n *yaml.Node, name string) *yaml.Node {
	for key, value := range members(n) {
		if key == name {
			return value
		}
	}
	return nil
}

// set puts value under the name of a mapping.
func set(n *yaml.Node, name string, value *yaml.Node) {
	if old := valueOf(n, name); old != nil {
		*old = *value
		return
	}
	n.Content = append(n.Content, text(name), value)
}

// pair is a member of a mapping.
type pair struct {
	name  string
	value *yaml.Node
}

// mapping, list and text make nodes, which are written as their encoder chooses.
func mapping(members ...pair) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, m := range members {
		set(n, m.name, m.value)
	}
	return n
}

func list(codes []user.Code) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Style: yaml.FlowStyle}
	for _, code := range codes {
		n.Content = append(n.Content, text(string(code)))
	}
	return n
}

func text(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

// appendJSON appends a document, keeping the order of its members: readers of it list them in that order.
func appendJSON(b []byte, n *yaml.Node) ([]byte, error) {
	switch n.Kind {
	case yaml.MappingNode:
		return appendItems(b, n, '{', ":,", '}')
	case yaml.SequenceNode:
		return appendItems(b, n, '[', ",", ']')
	}
	var value any
	if err := n.Decode(&value); err != nil {
		return nil, err
	}
	scalar, err := json.Marshal(value)
	return append(b, scalar...), err
}

// appendItems appends what n consists of, with the separators in turn between any two.
func appendItems(b []byte, n *yaml.Node, opening byte, separators string, closing byte) (_ []byte, err error) {
	b = append(b, opening)
	for i, item := range n.Content {
		if i > 0 {
			b = append(b, separators[(i-1)%len(separators)])
		}
		if b, err = appendJSON(b, item); err != nil {
			return nil, err
		}
	}
	return append(b, closing), nil
}
