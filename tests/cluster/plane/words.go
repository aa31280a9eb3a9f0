package main

import (
	"bufio"
	"fmt"
	"net"
	"strings"
)

// What tests say to a running plane, over a Unix socket: one word per line, some with an argument, and for each the
// answer `ok` or `failed: why` once it is done.
type words struct {
	spoken   chan word
	listener net.Listener
}

type word struct {
	text   string
	answer chan error
}

func listen(path string) (*words, error) {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("%w (the path of a socket must be short: name a folder near the root)", err)
	}
	w := &words{spoken: make(chan word), listener: listener}
	go w.accept()
	return w, nil
}

func (w *words) close() {
	_ = w.listener.Close()
}

func (w *words) accept() {
	for {
		connection, err := w.listener.Accept()
		if err != nil {
			return
		}
		go w.hear(connection)
	}
}

func (w *words) hear(connection net.Conn) {
	defer connection.Close()
	lines := bufio.NewScanner(connection)
	for lines.Scan() {
		word := word{strings.TrimSpace(lines.Text()), make(chan error)}
		w.spoken <- word
		answer := "ok"
		if err := <-word.answer; err != nil {
			answer = "failed: " + strings.ReplaceAll(err.Error(), "\n", " | ")
		}
		if _, err := fmt.Fprintln(connection, answer); err != nil {
			return
		}
	}
}
