-- A ledger on SQLite as turbo-vaed made it before there were migrations (commit 7a09e10), by sqlite3's iterdump.
BEGIN TRANSACTION;
CREATE TABLE charges (
	"key" VARCHAR(64) NOT NULL, 
	run VARCHAR(200) NOT NULL, 
	customer VARCHAR(200) NOT NULL, 
	stage VARCHAR(200) NOT NULL, 
	resource VARCHAR(200) NOT NULL, 
	market VARCHAR(16) NOT NULL, 
	quantity TEXT NOT NULL, 
	unit VARCHAR(40) NOT NULL, 
	unit_price_usd TEXT NOT NULL, 
	amount_usd TEXT NOT NULL, 
	started_at DATETIME NOT NULL, 
	ended_at DATETIME NOT NULL, 
	useful VARCHAR(8) NOT NULL, 
	price_source VARCHAR(400) NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "charges" VALUES('3d0d462d53f865e451df1f8fbc6178a04509c78abf92c035ca5ccd7f17cacf25','demo-1','demo','clip','node','local','15','node-second','0.000022222222222222','0.000333333333','2026-11-01 00:00:00.000000','2026-11-01 00:00:15.000000','useful','params.yaml');
INSERT INTO "charges" VALUES('6068b4cb18f51d2267bd36f277bfe1cd989f7a842178eff4cb7845a33fa5389c','demo-1','demo','clip','node','local','15.000001','node-second','0.000022222222222222','0.000333333356','2026-11-01 00:00:15.000001','2026-11-01 00:00:30.000000','useful','params.yaml');
INSERT INTO "charges" VALUES('c21bd28b3e2a92a3b0bc381ae4aecfdedd947efd589ef63f35be0f77dfaba045','demo-1','demo','clip','node','local','-15.000001','node-second','0.000022222222222222','-0.000333333356','2026-11-01 00:00:15.000001','2026-11-01 00:00:30.000000','useful','params.yaml');
INSERT INTO "charges" VALUES('7685b3afe4f2cd17b45c65434583188bf7c47d7675c03a97d3c3b7a299ce66d6','demo-1','demo','clip','node','local','15.000001','node-second','0.000022222222222222','0.000333333356','2026-11-01 00:00:15.000001','2026-11-01 00:00:30.000000','wasted','params.yaml; wasted: o''clock — 100 % {x} :y');
INSERT INTO "charges" VALUES('ec7ee602a298ef31f15c2d3e35c1bc3179f54d72c2254d31a56d37669ab99dbc','large','acme','clip','Gerät','spot','99999999999999999999','node-second','1','99999999999999999999','2026-11-01 00:00:30.000002','2026-11-01 00:00:45.000000','useful','params.yaml');
INSERT INTO "charges" VALUES('5a661fe6b5b08b5d91937e3f15b3839ac787ee8438f6f1313b026ca1922cedc6','large','acme','clip','Gerät','spot','-99999999999999999999','node-second','1','-99999999999999999999','2026-11-01 00:00:45.000003','2026-11-01 00:01:00.000000','useful','params.yaml');
INSERT INTO "charges" VALUES('7bd3cfb4bb7a1b49f3f1a29c7323c710c5c21e4ee326454428bdb2b71ca6e396','edges','demo','clip','node','local','9.223372036854775807','GB','1','9.223372036854775807','2026-11-01 00:01:00.000004','2026-11-01 00:01:15.000000','useful','params.yaml');
INSERT INTO "charges" VALUES('275251a8f40ff41f89675207688872a65b470e3742c6efb7dbffb966316ffce5','edges','demo','clip','node','local','9.223372036854775808','GB','1','9.223372036854775808','2026-11-01 00:01:15.000005','2026-11-01 00:01:30.000000','useful','params.yaml');
INSERT INTO "charges" VALUES('724a1ef42221f1ef1c5454d6564b5371dcb2a131896c9f132a6e1b330a0406ec','edges','demo','clip','node','local','-9.223372036854775808','GB','1','-9.223372036854775808','2026-11-01 00:01:30.000006','2026-11-01 00:01:45.000000','useful','params.yaml');
INSERT INTO "charges" VALUES('ab28c5e6c935c4d1f41dd19c722c32f729997a09d141bbb97305c2433d866957','edges','demo','clip','node','local','-9.223372036854775809','GB','1','-9.223372036854775809','2026-11-01 00:01:45.000007','2026-11-01 00:02:00.000000','useful','params.yaml');
INSERT INTO "charges" VALUES('134495249281b74c0d76788bedbdc5be92684cbbc37c513087e7e77b61afaa2c','edges','demo','clip','node','local','18.446744073709551615','GB','1','18.446744073709551615','2026-11-01 00:02:00.000008','2026-11-01 00:02:15.000000','useful','params.yaml');
INSERT INTO "charges" VALUES('2a6ecc0eded62dcdc1af4173dadf69da95d78e42c46b3edf934a1cd6718b3e0e','edges','demo','clip','node','local','0.000000000000000001','GB','0','0','2026-11-01 00:02:15.000009','2026-11-01 00:02:30.000000','useful','params.yaml');
CREATE INDEX ix_charges_run ON charges (run);
CREATE INDEX ix_charges_customer ON charges (customer);
CREATE TRIGGER charges_no_update BEFORE UPDATE ON charges BEGIN SELECT RAISE(ABORT, 'the ledger is append only'); END;
CREATE TRIGGER charges_no_delete BEFORE DELETE ON charges BEGIN SELECT RAISE(ABORT, 'the ledger is append only'); END;
COMMIT;
