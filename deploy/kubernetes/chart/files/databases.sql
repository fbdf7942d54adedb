-- One role and one database per service; none may enter another's. Run by the superuser, on an empty server, by psql 14
-- or newer, with the passwords in the environment: ELEARN_POSTGRES_PASSWORD_API, … (no argument, so no list of processes
-- shows them). The official image runs it from /docker-entrypoint-initdb.d when it makes its data folder.
\set ON_ERROR_STOP on
\getenv api ELEARN_POSTGRES_PASSWORD_API
\getenv scheduler ELEARN_POSTGRES_PASSWORD_SCHEDULER
\getenv datastore ELEARN_POSTGRES_PASSWORD_DATASTORE
\getenv registry ELEARN_POSTGRES_PASSWORD_REGISTRY
\getenv serving ELEARN_POSTGRES_PASSWORD_SERVING
CREATE ROLE api LOGIN PASSWORD :'api';
CREATE ROLE scheduler LOGIN PASSWORD :'scheduler';
CREATE ROLE datastore LOGIN PASSWORD :'datastore';
CREATE ROLE registry LOGIN PASSWORD :'registry';
CREATE ROLE serving LOGIN PASSWORD :'serving';
CREATE DATABASE api OWNER api TEMPLATE template0 ENCODING 'UTF8';
CREATE DATABASE scheduler OWNER scheduler TEMPLATE template0 ENCODING 'UTF8';
CREATE DATABASE datastore OWNER datastore TEMPLATE template0 ENCODING 'UTF8';
CREATE DATABASE registry OWNER registry TEMPLATE template0 ENCODING 'UTF8';
CREATE DATABASE serving OWNER serving TEMPLATE template0 ENCODING 'UTF8';
REVOKE ALL ON DATABASE api, scheduler, datastore, registry, serving, postgres FROM PUBLIC;
