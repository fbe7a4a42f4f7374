-- Cards to try the shop with, for everyone: pays, is refused, fails twice for each order and then pays.
INSERT INTO cards VALUES
    ('card_ok',      NULL, '4242', 'visa', '12/99', 'pays',    0),
    ('card_refused', NULL, '0002', 'visa', '12/99', 'refuses', 0),
    ('card_flaky',   NULL, '0119', 'visa', '12/99', 'flaky',   0);
