package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// selectOne asks a PostgreSQL server, which must trust us, for SELECT 1 in its
// own protocol: no login on the machine, whose work would be measured too.
func selectOne(conn net.Conn) error {
	const version3 = 3 << 16
	start := binary.BigEndian.AppendUint32(nil, version3)
	start = append(start, "user\x00postgres\x00database\x00postgres\x00\x00"...)
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(start)+4)), start...)); err != nil {
		return err
	}
	if _, err := awaitMessage(conn, 'Z'); err != nil { // ready for a query
		return err
	}
	query := "SELECT 1\x00"
	message := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(len(query)+4))
	if _, err := conn.Write(append(message, query...)); err != nil {
		return err
	}
	row, err := awaitMessage(conn, 'D')
	if err != nil {
		return err
	}
	// One column of one byte.
	if want := []byte{0, 1, 0, 0, 0, 1, '1'}; !bytes.Equal(row, want) {
		return fmt.Errorf("PostgreSQL answers %q to SELECT 1", row)
	}
	return nil
}

// awaitMessage reads messages up to one of a kind and returns its content.
func awaitMessage(r io.Reader, kind byte) ([]byte, error) {
	for {
		head := make([]byte, 5)
		if _, err := io.ReadFull(r, head); err != nil {
			return nil, err
		}
		size := binary.BigEndian.Uint32(head[1:])
		if size < 4 || size > 1<<16 {
			return nil, errors.New("this is not PostgreSQL")
		}
		body := make([]byte, size-4)
		if _, err := io.ReadFull(r, body); err != nil {
			return nil, err
		}
		switch head[0] {
		case kind:
			return body, nil
		case 'E':
			return nil, fmt.Errorf("PostgreSQL refuses: %q", body)
		}
	}
}
