package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"appplatform/app"
)

// stores are the notes of the instances that run.
var stores sync.Map

// Bounds of what there is.
const (
	maxText  = 2000 // characters of a note
	maxNotes = 500
)

// A note.
type note struct {
	ID   int64     `json:"id"`
	Text string    `json:"text"`
	Time time.Time `json:"time"`
}

// notes are kept in a database. Whoever changes them there, readers are told.
type notes struct {
	i    *app.Instance
	pool *pgxpool.Pool

	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	done    chan struct{}
	cancel  context.CancelFunc
}

const schema = `
create table if not exists notes (
	id   bigint generated always as identity primary key,
	text text not null,
	time timestamptz not null default now()
);
create or replace function notes_changed() returns trigger language plpgsql as $$
begin
	perform pg_notify('notes', '');
	return null;
end $$;
create or replace trigger notes_changed after insert or update or delete or truncate on notes
	for each statement execute function notes_changed();`

// openNotes waits a while for the database, which may be starting.
func openNotes(ctx context.Context, i *app.Instance) (*notes, error) {
	config, err := pgxpool.ParseConfig(i.DatabaseURL())
	if err != nil {
		return nil, fmt.Errorf("cannot use the database: %w", err)
	}
	config.MaxConns = 4
	config.ConnConfig.ConnectTimeout = 5 * time.Second
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("cannot use the database: %w", err)
	}
	for try := 0; ; try++ {
		if _, err = pool.Exec(ctx, schema); err == nil {
			break
		}
		if try == 20 || ctx.Err() != nil {
			pool.Close()
			return nil, fmt.Errorf("cannot use the database: %w", err)
		}
		i.Log(app.FlagDatabase, "waiting for the database: %v", err)
		pause(ctx, 500*time.Millisecond)
	}
	n := &notes{i: i, pool: pool, changed: make(chan struct{}), done: make(chan struct{})}
	ctx, n.cancel = context.WithCancel(ctx)
	go n.listen(ctx)
	return n, nil
}

func (n *notes) close() {
	n.cancel()
	<-n.done
	n.pool.Close()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// listen tells readers of changes, and of every new connection to the database:
// something may have changed meanwhile.
func (n *notes) listen(ctx context.Context) {
	defer close(n.done)
	for ctx.Err() == nil {
		err := n.listenOnce(ctx)
		if ctx.Err() == nil {
			n.i.Log(app.FlagDatabase, "connecting to the database again: %v", err)
			pause(ctx, 500*time.Millisecond)
		}
	}
}

func (n *notes) listenOnce(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, n.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "listen notes"); err != nil {
		return err
	}
	for {
		n.tell()
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
	}
}

func (n *notes) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.changed)
	n.changed = make(chan struct{})
}

// next returns a channel that is closed at the next change. Ask for it before
// reading, so that no change is missed.
func (n *notes) next() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// list returns the newest notes, the newest first.
func (n *notes) list(ctx context.Context) ([]note, error) {
	rows, err := n.pool.Query(ctx, "select id, text, time from notes order by id desc limit $1", maxNotes)
	if err != nil {
		return nil, fmt.Errorf("cannot read the notes: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[note])
	if err != nil {
		return nil, fmt.Errorf("cannot read the notes: %w", err)
	}
	return all, nil
}

// errText is what add returns for a text that no note can have.
var errText = errors.New("a note has 1 to 2000 characters")

// errFull is what add returns when there is no room: what the list does not show
// could not be deleted either, and would fill the disk.
var errFull = errors.New("there are 500 notes: delete some first")

func (n *notes) add(ctx context.Context, text string) (note, error) {
	text = strings.TrimSpace(text)
	if text == "" || utf8.RuneCountInString(text) > maxText || strings.ContainsRune(text, 0) || !utf8.ValidString(text) {
		return note{}, errText
	}
	rows, err := n.pool.Query(ctx, `insert into notes (text) select $1
		where (select count(*) from notes) < $2 returning id, text, time`, text, maxNotes)
	if err != nil {
		return note{}, fmt.Errorf("cannot store the note: %w", err)
	}
	added, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[note])
	if errors.Is(err, pgx.ErrNoRows) {
		return note{}, errFull
	}
	if err != nil {
		return note{}, fmt.Errorf("cannot store the note: %w", err)
	}
	n.i.Log(app.FlagDatabase, "note %d was added", added.ID)
	return added, nil
}

// remove reports whether there was such a note.
func (n *notes) remove(ctx context.Context, id int64) (bool, error) {
	tag, err := n.pool.Exec(ctx, "delete from notes where id = $1", id)
	if err != nil {
		return false, fmt.Errorf("cannot delete the note: %w", err)
	}
	return tag.RowsAffected() > 0, nil
}
