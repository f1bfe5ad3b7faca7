-- oldest: 1
CREATE TABLE config (
	name  text PRIMARY KEY,
	value text NOT NULL
);

CREATE TABLE service (
	id           text PRIMARY KEY CHECK (id <> ''),
	title        text NOT NULL DEFAULT '',
	manufacturer text NOT NULL DEFAULT '',
	description  text NOT NULL DEFAULT '',
	build        text NOT NULL DEFAULT '',
	label        text NOT NULL DEFAULT '',
	previous     text NOT NULL DEFAULT '',
	min_image    integer NOT NULL DEFAULT 0,
	developer    boolean NOT NULL DEFAULT false,
	uid          bigint NOT NULL CONSTRAINT service_uid UNIQUE,
	wanted       boolean NOT NULL DEFAULT false,
	memory_mib   integer NOT NULL DEFAULT 0,
	cpu_percent  integer NOT NULL DEFAULT 0,
	processes    integer NOT NULL DEFAULT 0,
	log_size     bigint NOT NULL DEFAULT 0,
	log_flags    bigint NOT NULL DEFAULT 0
);

-- phase says whether the database of the instance is being made or removed.
CREATE TABLE instance (
	id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	service             text NOT NULL CONSTRAINT instance_service REFERENCES service,
	name                text NOT NULL,
	domain              text NOT NULL,
	password            text NOT NULL,
	path                text NOT NULL CONSTRAINT instance_path UNIQUE,
	db_name             text NOT NULL CONSTRAINT instance_db_name UNIQUE,
	db_user             text NOT NULL CONSTRAINT instance_db_user UNIQUE,
	db_password         text NOT NULL,
	db_host             text NOT NULL DEFAULT '',
	exclude_from_backup boolean NOT NULL DEFAULT false,
	log_flags           bigint NOT NULL DEFAULT 0,
	wanted              boolean NOT NULL DEFAULT false,
	phase               text NOT NULL DEFAULT 'ready',
	CONSTRAINT instance_name UNIQUE (name, domain)
);
CREATE INDEX ON instance (service);

-- Of a token there is its hash only: SHA-256 of the secret.
CREATE TABLE token (
	id        text PRIMARY KEY,
	name      text NOT NULL CONSTRAINT token_name UNIQUE,
	hash      bytea NOT NULL CONSTRAINT token_hash UNIQUE,
	created   timestamptz NOT NULL,
	last_used timestamptz
);

-- The time names an entry, so that pages of them neither repeat nor lose one.
CREATE TABLE audit (
	id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	time   timestamptz NOT NULL UNIQUE,
	who    text NOT NULL,
	origin text NOT NULL,
	what   text NOT NULL,
	detail text NOT NULL DEFAULT ''
);

CREATE TABLE crash (
	id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	service text NOT NULL,
	time    timestamptz NOT NULL,
	what    text NOT NULL
);
