package vmtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Agent runs a command of the QEMU guest agent: "guest-ping",
// "guest-shutdown". Result, if any, takes what it returns.
func (m *Machine) Agent(command string, args, result any, within time.Duration) error {
	m.agentMu.Lock()
	defer m.agentMu.Unlock()
	deadline := time.Now().Add(within)
	if err := m.agent.SetDeadline(deadline); err != nil {
		return fmt.Errorf("cannot reach the guest agent: %w", err)
	}
	dec := json.NewDecoder(m.agent)
	// The channel keeps what earlier callers or an earlier boot left in it: the
	// number is answered when that is through.
	id := time.Now().UnixNano() & 0xffffffff
	if err := m.agentSend("guest-sync", map[string]any{"id": id}); err != nil {
		return err
	}
	for {
		var reply struct {
			Return json.RawMessage `json:"return"`
		}
		if err := dec.Decode(&reply); err != nil {
			return fmt.Errorf("cannot hear the guest agent: %w", err)
		}
		if string(reply.Return) == fmt.Sprint(id) {
			break
		}
	}
	if err := m.agentSend(command, args); err != nil {
		return err
	}
	if command == "guest-shutdown" {
		return nil // It answers only if it fails.
	}
	var reply struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := dec.Decode(&reply); err != nil {
		return fmt.Errorf("cannot hear the guest agent: %w", err)
	}
	if reply.Error != nil {
		return errors.New("the guest agent says: " + reply.Error.Desc)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(reply.Return, result)
}

func (m *Machine) agentSend(command string, args any) error {
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(m.agent).Encode(request); err != nil {
		return fmt.Errorf("cannot reach the guest agent: %w", err)
	}
	return nil
}
