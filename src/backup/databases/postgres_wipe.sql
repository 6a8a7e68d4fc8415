set local client_min_messages = error;
set local search_path = pg_catalog;
do $larder$
declare
  statements text[];
  statement text;
  remaining bigint;
begin
  -- Each array is complete before its first statement runs, because a statement drops further objects by `cascade`.
  select array_agg(format('drop schema if exists %I cascade', n.nspname)) into statements
    from pg_namespace n
    where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'public')
      and not exists (select 1 from pg_extension e where e.extnamespace = n.oid)
      and not exists (select 1 from pg_depend d where d.classid = 'pg_namespace'::regclass and d.objid = n.oid and d.deptype = 'e');
  foreach statement in array coalesce(statements, '{}') loop execute statement; end loop;

  select array_agg(format('drop %s if exists %I.%I cascade', case c.relkind when 'v' then 'view' when 'm' then 'materialized view'
      when 'f' then 'foreign table' when 'S' then 'sequence' else 'table' end, n.nspname, c.relname)
      order by c.relkind in ('r', 'p') desc) into statements
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
      and not exists (select 1 from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e');
  foreach statement in array coalesce(statements, '{}') loop execute statement; end loop;

  select array_agg(format('drop routine if exists %I.%I(%s) cascade', n.nspname, p.proname,
      pg_get_function_identity_arguments(p.oid))) into statements
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
      and not exists (select 1 from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype in ('e', 'i'));
  foreach statement in array coalesce(statements, '{}') loop execute statement; end loop;

  select array_agg(format('drop type if exists %I.%I cascade', n.nspname, t.typname)) into statements
    from pg_type t join pg_namespace n on n.oid = t.typnamespace left join pg_class c on c.oid = t.typrelid
    where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
      and (t.typtype in ('d', 'e', 'r') or (t.typtype = 'c' and c.relkind = 'c'))
      and not exists (select 1 from pg_depend d where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e');
  foreach statement in array coalesce(statements, '{}') loop execute statement; end loop;

  select array_agg(what) into statements from (
    select format('drop operator if exists %s cascade', o.oid::regoperator) as what
      from pg_operator o join pg_namespace n on n.oid = o.oprnamespace
      where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
        and not exists (select 1 from pg_depend d where d.classid = 'pg_operator'::regclass and d.objid = o.oid and d.deptype = 'e')
    union all
    select format('drop collation if exists %I.%I cascade', n.nspname, c.collname)
      from pg_collation c join pg_namespace n on n.oid = c.collnamespace
      where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
        and not exists (select 1 from pg_depend d where d.classid = 'pg_collation'::regclass and d.objid = c.oid and d.deptype = 'e')
    union all
    select format('drop text search configuration if exists %I.%I cascade', n.nspname, c.cfgname)
      from pg_ts_config c join pg_namespace n on n.oid = c.cfgnamespace
      where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
        and not exists (select 1 from pg_depend d where d.classid = 'pg_ts_config'::regclass and d.objid = c.oid and d.deptype = 'e')
    union all
    select format('drop text search dictionary if exists %I.%I cascade', n.nspname, c.dictname)
      from pg_ts_dict c join pg_namespace n on n.oid = c.dictnamespace
      where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
        and not exists (select 1 from pg_depend d where d.classid = 'pg_ts_dict'::regclass and d.objid = c.oid and d.deptype = 'e')
    union all
    select format('drop server if exists %I cascade', s.srvname) from pg_foreign_server s
      where not exists (select 1 from pg_depend d
        where d.classid = 'pg_foreign_server'::regclass and d.objid = s.oid and d.deptype = 'e')
    union all
    select format('drop publication if exists %I cascade', p.pubname) from pg_publication p
    union all
    select format('drop event trigger if exists %I cascade', t.evtname) from pg_event_trigger t
      where not exists (select 1 from pg_depend d
        where d.classid = 'pg_event_trigger'::regclass and d.objid = t.oid and d.deptype = 'e')
  ) others;
  foreach statement in array coalesce(statements, '{}') loop execute statement; end loop;

  perform lo_unlink(l.oid) from pg_largeobject_metadata l;

  select count(*) into remaining from (
    select c.oid, 'pg_class'::regclass as class, c.relnamespace as namespace from pg_class c
      where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    union all
    select p.oid, 'pg_proc'::regclass, p.pronamespace from pg_proc p
  ) o join pg_namespace n on n.oid = o.namespace
    where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
      and not exists (select 1 from pg_depend d where d.classid = o.class and d.objid = o.oid and d.deptype = 'e');
  if remaining > 0 then
    raise exception '% objects of the old database cannot be dropped', remaining;
  end if;
end
$larder$;
